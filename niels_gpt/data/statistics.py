"""Describe token files for people: numbers of both splits, common tokens, and examples.

An item is a document or a dialogue; lengths are in tokens. Shapes: V ids, n tokens of a chunk.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niels_gpt.data.cache.token_files import REBUILD, TokenCache, TokenFiles
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import Tokenizer

CHUNK = 1 << 20  # tokens at a time; beside them, memory holds a few numbers of each item
NEAR_EMPTY = 16  # bytes of text
COMMON, EXAMPLES, EXCERPT = 10, 5, 400  # ids and items to show, and tokens of an item
FACTORS = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9)]  # for hashes


def describe_cache(cache: TokenCache, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the numbers of a source, and common tokens and examples of its training split, ready for JSON.

    The unigram model counts the targets of training, and is measured on those of validation.
    """
    files, sizes = cache.open("train"), tokenizer.token_bytes()
    train, counts, hashes = count_split(files, sizes)
    val, val_counts, val_hashes = count_split(cache.open("val"), sizes)
    for numbers in (train, val):
        numbers["share_of_tokens"] = round(numbers["tokens"] / (train["tokens"] + val["tokens"]), 4)
    val["also_in_training"] = int(torch.isin(val_hashes, hashes).sum())  # items
    nats, text = val_counts[1].double() @ measure_surprise(counts[1]), int(val_counts[1] @ torch.tensor(sizes))
    val["unigram_bits_per_byte"] = round(float(nats) / math.log(2) / text, 4) if text else None
    common = Counter(dict(enumerate(counts[0].tolist()))).most_common(COMMON)
    examples = []
    for item in range(0, train["items"], max(1, train["items"] // EXAMPLES))[:EXAMPLES]:
        begin, end = files.offsets[item : item + 2].tolist()
        shown = slice(begin, min(end, begin + EXCERPT))
        pieces = split_text(files.ids[shown].tolist(), files.target_mask[shown].bool().tolist(), tokenizer)
        examples.append({"tokens": end - begin, "is_cut": shown.stop < end, "text": pieces})
    return {
        "train": train,
        "val": val,
        "common_tokens": [split_text([id], [], tokenizer)[0] | {"count": n} for id, n in common if n],
        "examples": examples,
    }


def count_split(files: TokenFiles, token_bytes: Sequence[int]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Count a split. Return its numbers; how often each id occurs and is a target (2, V); a hash of each item.

    `duplicates` are the items that are equal to one before. `lengths` has rows of (least, most, items).

    DataError if an id is not one of the tokenizer's.
    """
    sizes, offsets = np.array(token_bytes), files.offsets.numpy()
    lengths, counts = np.diff(offsets), np.zeros((2, len(sizes)), np.int64)
    hashes, text = np.zeros(len(lengths), np.uint64), np.zeros(len(lengths), np.int64)
    for begin in range(0, len(files.ids), CHUNK):
        ids = files.ids[begin : begin + CHUNK].long().numpy()  # (n)
        if ids.max() >= len(sizes):
            raise DataError(f"token id {ids.max()}, but the tokenizer has {len(sizes)} entries", REBUILD)
        mask = files.target_mask[begin : begin + CHUNK].bool().numpy()  # (n), or empty
        counts[0] += np.bincount(ids, minlength=len(sizes))
        counts[1] += np.bincount(ids[mask] if len(mask) else ids, minlength=len(sizes))
        end = begin + len(ids)
        first, last = offsets.searchsorted(begin, "right") - 1, offsets.searchsorted(end)
        bounds = offsets[first : last + 1].clip(begin, end) - begin  # of the items in this chunk
        places = np.arange(begin, end) - offsets[first:last].repeat(np.diff(bounds))  # of tokens in their items
        mixed = ids.astype(np.uint64) * FACTORS[0] + places.astype(np.uint64) * FACTORS[1]
        mixed = (mixed ^ mixed >> np.uint64(29)) * FACTORS[2]
        for sums, values in ((hashes, mixed ^ mixed >> np.uint64(32)), (text, sizes[ids])):
            sums[first:last] += np.add.reduceat(values, bounds[:-1])  # no item is empty
    hashes.sort()
    tokens, targets = counts.sum(1).tolist()
    digits = enumerate(np.bincount(np.frexp(lengths)[1]).tolist())  # items by the binary digits of their length
    numbers = {
        "items": len(lengths),
        "tokens": tokens,
        "bytes": int(counts[0] @ sizes),
        "bytes_per_token": round(float(counts[0] @ sizes) / max(1, tokens), 2),
        "target_share": round(targets / max(1, tokens), 4),
        "duplicates": int((hashes[1:] == hashes[:-1]).sum()),
        f"under_{NEAR_EMPTY}_bytes": int((text < NEAR_EMPTY).sum()),
        "median_length": int(np.median(lengths)) if len(lengths) else 0,
        "longest": int(lengths.max(initial=0)),
        "lengths": [(1 << n >> 1, (1 << n) - 1, items) for n, items in digits if items],
    }
    return numbers, torch.from_numpy(counts), torch.from_numpy(hashes.view(np.int64))


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
