"""The numbers of token files are those of a plain count, item by item."""

import math
from collections import Counter
from itertools import chain, compress
from pathlib import Path
from statistics import median
from unittest import mock

import pytest
import torch

from niels_gpt.config import DataCfg
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.data.cache.token_files import TokenFiles
from niels_gpt.data.statistics import count_split, describe_cache, split_text
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import ASSISTANT, END_OF_TEXT, END_OF_TURN, USER, BytesTokenizer

BYTES = BytesTokenizer()
V, TOKEN_BYTES = 12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 1]
ONE, OTHER = [1, 2, 3, 3, 2, 1], [2, 1, 3, 3, 1, 2]  # the same tokens in another order
ITEMS = [ONE, [8] * 9, OTHER, ONE, [9], [5, 5], ONE, [8] * 10, [9], [1, 8, 7], *([n] for n in range(V))]
MASKS = [[n % 3 == 1 for n in range(len(item))] for item in ITEMS]


def files(masks: list[list[bool]]) -> TokenFiles:
    ends = torch.tensor([0, *map(len, ITEMS)]).cumsum(0)
    ids = torch.tensor([*chain(*ITEMS)])
    return TokenFiles(ids.to(torch.uint16), torch.tensor([*chain(*masks)], dtype=torch.uint8), ends)


@pytest.mark.parametrize("masks", [MASKS, []], ids=["dialogues", "documents"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_they_are_those_of_a_plain_count(chunk: int, masks: list[list[bool]]) -> None:
    with mock.patch("niels_gpt.data.statistics.CHUNK", chunk):
        numbers, counts, hashes = count_split(files(masks), TOKEN_BYTES)
    tokens, different = [*chain(*ITEMS)], len({tuple(item) for item in ITEMS})
    text = [sum(TOKEN_BYTES[id] for id in item) for item in ITEMS]
    targets = [*compress(tokens, chain(*masks))] if masks else tokens
    assert numbers == {
        "items": len(ITEMS),
        "tokens": len(tokens),
        "bytes": sum(text),
        "bytes_per_token": round(sum(text) / len(tokens), 2),
        "target_share": round(len(targets) / len(tokens), 4),
        "duplicates": len(ITEMS) - different,
        "under_16_bytes": sum(n < 16 for n in text),
        "median_length": median(map(len, ITEMS)),
        "longest": 10,
        "lengths": [
            (least, most, sum(least <= len(item) <= most for item in ITEMS))
            for least, most in ((1, 1), (2, 3), (4, 7), (8, 15))
        ],
    }
    assert counts.tolist() == [[part.count(id) for id in range(V)] for part in (tokens, targets)]
    assert len({*hashes.tolist()}) == different


def test_an_id_that_the_tokenizer_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="token id 11, but the tokenizer has 5 entries"):
        count_split(files([]), TOKEN_BYTES[:5])


def test_a_source_is_described_by_both_splits_and_examples(tmp_path: Path) -> None:
    texts = {"train": ["a", "bb", "a b c", "long " * 200, "bb"], "val": ["a b c", "new"]}
    for split, documents in texts.items():
        (tmp_path / f"{split}.txt").write_text("\n\n".join(documents))
    cfg = DataCfg(
        kind="text", files=(f"{tmp_path}/train.txt",), val_files=(f"{tmp_path}/val.txt",), documents="blank_lines",
        tokenizer="bytes", cache_dir=f"{tmp_path}/cache",
    )  # fmt: skip
    found = describe_cache(open_cache(cfg.mixture()[0], "documents", BYTES, cfg, 9), BYTES)
    end = BYTES.special[END_OF_TEXT]
    ids = {split: [id for text in texts[split] for id in (*text.strip().encode(), end)] for split in texts}
    seen = Counter(ids["train"])
    bits = sum(-math.log2((seen[id] + 1) / (len(ids["train"]) + 256)) for id in ids["val"])
    assert found["val"]["unigram_bits_per_byte"] == pytest.approx(bits / len("a b cnew"), abs=1e-4)
    assert (found["train"]["duplicates"], found["val"]["also_in_training"]) == (1, 1)
    assert found["train"]["share_of_tokens"] == round(len(ids["train"]) / sum(map(len, ids.values())), 4)
    assert [token["count"] for token in found["common_tokens"]] == [count for _, count in seen.most_common(10)]
    ended = {"text": END_OF_TEXT, "target": None, "special": True}
    shown = {example["text"][0]["text"] for example in found["examples"] if example["text"][1:] == [ended]}
    (cut,) = (example for example in found["examples"] if example["is_cut"])
    assert shown == {"a", "bb", "a b c"} and cut["tokens"] == 1000
    assert cut["text"] == [{"text": ("long " * 200)[:400], "target": None, "special": False}]


def test_text_is_split_at_special_tokens_and_where_targets_begin() -> None:
    user, assistant, end = (BYTES.special[token] for token in (USER, ASSISTANT, END_OF_TURN))
    ids = [user, *b"Hi ", *"é".encode(), end, assistant, *b"Yes", end]
    mask = [False] * 8 + [True] * 4
    assert split_text(ids, mask, BYTES) == [
        {"text": USER, "target": False, "special": True},
        {"text": "Hi é", "target": False, "special": False},
        {"text": END_OF_TURN, "target": False, "special": True},
        {"text": ASSISTANT, "target": False, "special": True},
        {"text": "Yes", "target": True, "special": False},
        {"text": END_OF_TURN, "target": True, "special": True},
    ]
