"""Describe token files for people: numbers of both splits, common tokens, and examples.

An item is a document or a dialogue; lengths are in tokens. Shapes: V ids, n tokens of a chunk.
"""

import math
from array import array
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niels_gpt.data.cache.token_files import FIND_DAMAGE, TokenCache, TokenFiles
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import Tokenizer

CHUNK = 1 << 20  # tokens at a time; beside them, memory holds a few numbers of each item
NEAR_EMPTY = 16  # bytes of text
COMMON, EXAMPLES, EXCERPT = 10, 5, 400  # ids and items to show, and tokens of an item


def describe_cache(cache: TokenCache, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the numbers of a source, and common tokens and examples of its training split, ready for JSON.

    The unigram model counts the targets of training, and is measured on those of validation.
    """
    files, sizes = cache.open("train"), tokenizer.token_bytes()
    train, counts, hashes = count_split(files, sizes)
    val, val_counts, val_hashes = count_split(cache.open("val"), sizes)
    for numbers in (train, val):
        numbers["share_of_tokens"] = round(numbers["tokens"] / (train["tokens"] + val["tokens"]), 4)
    val["also_in_training"] = int(np.isin(val_hashes, hashes).sum())  # items
    nats, text = val_counts[1].double() @ measure_surprise(counts[1]), int(val_counts[1] @ torch.tensor(sizes))
    val["unigram_bits_per_byte"] = round(float(nats) / math.log(2) / text, 4) if text else None
    common = counts[0].argsort(descending=True, stable=True)[:COMMON].tolist()
    examples = []
    for item in range(0, train["items"], max(1, train["items"] // EXAMPLES))[:EXAMPLES]:
        begin, end = files.offsets[item : item + 2].tolist()
        shown = slice(begin, min(end, begin + EXCERPT))
        pieces = split_text(files.ids[shown].tolist(), files.target_mask[shown].bool().tolist(), tokenizer)
        examples.append({"tokens": end - begin, "is_cut": shown.stop < end, "text": pieces})
    return {
        "train": train,
        "val": val,
        "common_tokens": [
            split_text([id], [], tokenizer)[0] | {"count": int(counts[0, id])} for id in common if counts[0, id]
        ],
        "examples": examples,
    }


def count_split(files: TokenFiles, token_bytes: Sequence[int]) -> tuple[dict[str, Any], Tensor, NDArray[np.int64]]:
    """Count a split. Return its numbers; how often each id occurs and is a target (2, V); a hash of each item.

    `duplicates` are the items that are equal to one before. `lengths` has rows of (least, most, items).

    DataError if an id is not one of the tokenizer's.
    """
    sizes, counts = np.array(token_bytes), torch.zeros(2, len(token_bytes), dtype=torch.int64)
    for begin in range(0, len(files.ids), CHUNK):
        ids, mask = (column[begin : begin + CHUNK].long() for column in files[:2])  # (n); the mask may be empty
        if ids.max() >= len(sizes):
            raise DataError(f"token id {ids.max()}, but the tokenizer has {len(sizes)} entries", FIND_DAMAGE)
        for count, chosen in zip(counts, (ids, ids[mask.bool()] if len(mask) else ids), strict=True):
            count += chosen.bincount(minlength=len(sizes))
    hashes, near_empty, all_ids = array("q"), 0, files.ids.numpy()
    for begin, end in pairwise(files.offsets.numpy().data):
        item = all_ids[begin : min(end, begin + CHUNK)]
        hashes.append(hash((end - begin, item.tobytes())))  # to compare within this process
        near_empty += len(item) < 4 * NEAR_EMPTY and int(sizes[item].sum()) < NEAR_EMPTY
    tokens, targets = counts.sum(1).tolist()
    text, lengths = int(counts[0] @ torch.from_numpy(sizes)), files.offsets.diff().numpy()
    digits = enumerate(np.bincount(np.frexp(lengths)[1]).tolist())  # items by the binary digits of their length
    numbers = {
        "items": len(lengths),
        "tokens": tokens,
        "bytes": text,
        "bytes_per_token": round(text / max(1, tokens), 2),
        "target_share": round(targets / max(1, tokens), 4),
        "duplicates": len(hashes) - len(np.unique(hashes)),
        f"under_{NEAR_EMPTY}_bytes": near_empty,
        "median_length": int(np.median(lengths)) if len(lengths) else 0,
        "longest": int(lengths.max(initial=0)),
        "lengths": [(1 << n >> 1, (1 << n) - 1, items) for n, items in digits if items],
    }
    return numbers, counts, np.array(hashes)


def measure_surprise(counts: Tensor) -> Tensor:
    """Return the nats of each id, (V), to a unigram model with these counts and add-one smoothing."""
    seen = counts.double() + 1
    return -(seen / seen.sum()).log()


def split_text(ids: Sequence[int], target_mask: Sequence[bool], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the text of ids in pieces, special tokens and targets apart; without a mask `target` is None."""
    names, pieces = {id: token for token, id in tokenizer.special.items()}, []
    mask: Sequence[bool | None] = target_mask or [None] * len(ids)
    for (name, target), run in groupby(zip(ids, mask, strict=True), lambda token: (names.get(token[0]), token[1])):
        part = [id for id, _ in run]
        text = name * len(part) if name else tokenizer.decode(part)
        pieces.append({"text": text, "target": target, "special": bool(name)})
    return pieces
