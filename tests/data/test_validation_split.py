"""The validation split: a function of the content, near the share asked for, and said when it is not."""

import json
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from niels_gpt.config import DataCfg
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.data.cache.token_files import TokenCache
from niels_gpt.data.readers.records import SECTION
from niels_gpt.data.sources import Want
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import END_OF_TEXT, BytesTokenizer

BYTES = BytesTokenizer()
END = BYTES.special[END_OF_TEXT]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(*files: str, kind: str = "text", want: Want = "documents", **settings: Any) -> TokenCache:
    cfg = DataCfg(kind=kind, files=files, tokenizer="bytes", **settings)  # type: ignore[arg-type]
    return open_cache(cfg.mixture()[0], want, BYTES, cfg, 200)


def items(cache: TokenCache, split: str) -> list[str]:
    files = cache.open(split)
    bounds = zip(files.offsets[:-1].tolist(), files.offsets[1:].tolist(), strict=True)
    return [BYTES.decode([id for id in files.ids[a:b].tolist() if id != END]) for a, b in bounds]


def share(cache: TokenCache) -> float:
    val, train = (cache.meta.splits[split].ids.count for split in ("val", "train"))
    return val / (val + train)


def prose(size: int, seed: int = 0) -> str:
    """Paragraphs of sentences of words, no two alike."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(size // 3)]
    ends = draw.choices([" ", ". ", ".\n", ".\n\n"], [30, 3, 1, 1], k=len(words))
    return "".join(word + end for word, end in zip(words, ends, strict=True))[:size]


def chats(questions: Sequence[str]) -> str:
    return "\n".join(json.dumps({"prompt": q, "completion": f"answer {n}"}) for n, q in enumerate(questions))


@pytest.mark.parametrize(
    "sizes",
    [
        *([size] for size in (1000, 3000, 27_000, 40_000, 80_000, 250_000)),
        [3000] * 3,
        [2000] * 19,
        [300] * 30,
        [500] * 10 + [60_000],
    ],
    ids=str,
)
def test_small_data_keeps_the_share_asked_for_and_loses_no_text(sizes: list[int]) -> None:
    for seed in range(5):
        texts = [prose(size, seed * 100 + n) for n, size in enumerate(sizes)]
        for n, text in enumerate(texts):
            Path(f"{n}.txt").write_text(text)
        cache = opened("*.txt")
        assert 0.03 < share(cache) < 0.075
        val, train = items(cache, "val"), items(cache, "train")
        assert len(sizes) > 1 or len(val) <= 2, "the text that validates stays in one place"
        assert sum(map(len, val + train)) == sum(sizes)
        assert all(any(part in text for text in texts) for part in val + train)
        assert cache.meta.records == len(sizes)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.49])
def test_other_shares_are_kept_as_well(fraction: float) -> None:
    Path("a.txt").write_text(prose(30_000))
    assert share(opened("a.txt", val_fraction=fraction)) == pytest.approx(fraction, rel=0.3)


@pytest.mark.parametrize(
    "text", ["x" * 3000, "word " * 600, "line\n" * 600, "a\n\n" * 1000, "\n" * 40 + "é€😀" * 300 + " \n" * 300]
)
def test_text_of_any_shape_is_split(text: str) -> None:
    Path("a.txt").write_text(text)
    cache = opened("a.txt")
    assert 0.02 < share(cache) < 0.08
    assert sorted("".join(items(cache, "val") + items(cache, "train"))) == sorted(text)


def test_a_document_ends_only_where_its_text_does_or_where_the_split_changes() -> None:
    Path("a.txt").write_text(text := prose(20 * SECTION))
    train, val = items(cache := opened("a.txt"), "train"), items(cache, "val")
    assert len(val) <= len(train) <= len(val) + 1 < 4
    assert all(part in text for part in train + val)


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_paths_names_and_order_of_files_change_neither_the_split_nor_the_content_hash(kind: str) -> None:
    def measure(*files: str) -> tuple[Any, ...]:
        cache = opened(*files, kind=kind)
        return cache.folder, cache.meta.content_sha256, cache.meta.splits

    os.mkdir("d")
    for name, seed in {"a": 1, "b": 2, "c": 3}.items():
        texts = [prose(2000, seed * 10 + n) for n in range(30)] if kind == "jsonl" else [prose(50_000, seed)]
        rows = [json.dumps({"text": text}) for text in texts]
        Path("d", name).write_text("\n".join(rows if kind == "jsonl" else texts))
    first = measure("d/a", "d/b", "d/c")
    assert measure("d/c", f"{Path.cwd()}/d/a", "d/../d/b") == first
    assert measure("d/*") == first
    os.rename("d", "moved")
    os.rename("moved/a", "z")
    assert measure("z", "moved/b", "moved/c") == first
    Path("z").write_text(Path("z").read_text().replace("a", "b", 1))
    assert measure("z", "moved/b", "moved/c")[1] != first[1]


def test_the_same_documents_in_another_kind_of_file_give_the_same_token_files() -> None:
    texts = [prose(size, size) for size in (200, 5000, 40_000, 90_000)]
    for n, text in enumerate(texts):
        Path(f"{n}.txt").write_text(text)
    Path("rows").write_text("\n".join(json.dumps({"text": text}) for text in reversed(texts)))
    as_text, as_rows = opened("*.txt"), opened("rows", kind="jsonl")
    assert as_text.meta.content_sha256 == as_rows.meta.content_sha256
    assert as_text.meta.splits == as_rows.meta.splits


def questions_of(cache: TokenCache, split: str) -> set[str]:
    return {item.partition("answer")[0] for item in items(cache, split)}


def test_dialogues_with_the_same_first_question_stay_together_and_a_large_group_trains() -> None:
    Path("a").write_text(chats(["Write a haiku"] * 240 + [f"question {n // 2}" for n in range(200)]))
    cache = opened("a", kind="jsonl", want="dialogues")
    train, val = questions_of(cache, "train"), questions_of(cache, "val")
    assert not train & val and len(train | val) == 101
    assert any("haiku" in question for question in train)
    assert 0.04 < share(cache) < 0.06


@pytest.mark.parametrize("repeats", [1, 5])
def test_groups_that_are_all_large_are_split_all_the_same(repeats: int) -> None:
    Path("a").write_text(chats([f"question {n:02}" for n in range(40)] * repeats))
    cache = opened("a", kind="jsonl", want="dialogues")
    assert not questions_of(cache, "train") & questions_of(cache, "val")
    assert 0.04 < share(cache) < 0.06


def test_a_share_that_is_missed_is_said_and_neither_split_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    Path("a").write_text(chats(["first?", "second?", "third?"]))
    for _ in range(2):  # built, then found in the cache
        caplog.clear()
        cache = opened("a", kind="jsonl", want="dialogues")
        assert len(items(cache, "val")) == 1 and len(items(cache, "train")) == 2
        said = "33 % of the tokens of jsonl validate, where data.val_fraction asks for 5 %"
        assert said in caplog.text
    caplog.clear()
    Path("b.txt").write_text(prose(3000))
    opened("b.txt")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("kind", "want"), [("text", "documents"), ("jsonl", "dialogues")])
def test_what_cannot_be_split_is_refused_with_a_way_out(kind: str, want: Want) -> None:
    Path("a").write_text("one short text" if kind == "text" else chats(["the same question"] * 50))
    with pytest.raises(DataError, match=f"^{kind}: its {want} cannot be split for validation, since") as caught:
        opened("a", kind=kind, want=want)
    assert "val_files" in caught.value.hint
    Path("b").write_text("another" if kind == "text" else chats(["the same question"]))
    cache = opened("a", kind=kind, want=want, val_files="b")
    assert cache.meta.splits["val"].ids.count < cache.meta.splits["train"].ids.count


def test_a_folder_of_tables_that_cannot_be_split_is_pointed_to_another_split() -> None:
    Path("t.jsonl").write_text('{"text": "one short text"}\n')
    with pytest.raises(DataError, match="^hf: its documents cannot be split") as caught:
        opened(kind="hf", repo="t.jsonl")
    assert caught.value.hint == "add more data, or validate on another split with data.val_split"


@pytest.mark.parametrize(("rows", "why"), [(1, "there is only one"), (3, "all have the same first question")])
def test_dialogues_that_cannot_be_split_are_refused_with_the_reason(rows: int, why: str) -> None:
    answers = [{"prompt": "Why?", "completion": f"Because of {n}."} for n in range(rows)]
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers))
    with pytest.raises(DataError, match=f"cannot be split for validation, since {why}$"):
        opened("a.jsonl", kind="jsonl", want="dialogues")


def test_val_files_are_the_whole_validation_split(caplog: pytest.LogCaptureFixture) -> None:
    for name, size in {"a": 40_000, "b": 5000, "v": 40_000, "w": 50}.items():
        Path(name).write_text(prose(size, len(name) + size))
    cache = opened("a", "b", val_files=("v", "w"))
    assert sorted(items(cache, "train")) == sorted(Path(name).read_text() for name in "ab")
    assert sorted(items(cache, "val")) == sorted(Path(name).read_text() for name in "vw")
    assert "val_fraction" not in caplog.text
    swapped = opened("v", "w", val_files=("a", "b"))
    assert swapped.meta.content_sha256 != cache.meta.content_sha256
    Path("w").write_text("other")
    assert opened("a", "b", val_files=("v", "w")).meta.content_sha256 != cache.meta.content_sha256


def test_val_files_that_are_not_there_are_named_as_such() -> None:
    Path("a").write_text(prose(500))
    with pytest.raises(DataError, match=r"^data\.val_files: no file matches 'missing'$"):
        opened("a", val_files="missing")
    Path("train.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="has no split 'test', only train.jsonl") as caught:
        opened(kind="hf", repo=".", val_split="test")
    assert caught.value.hint.startswith("set data.val_split to")


def test_a_file_that_would_train_and_validate_is_refused_with_its_name() -> None:
    for name in ("a.txt", "val.txt"):
        Path(name).write_text(prose(500))
    os.symlink("val.txt", "link")
    for val in ("val.txt", "link"):
        with pytest.raises(DataError, match=f"^{val} is in both files and val_files$"):
            opened("*.txt", val_files=val)


def test_validation_text_is_chosen_by_its_hash_so_that_more_data_moves_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [prose(400, n) for n in range(600)]
    for n, text in enumerate(texts[:500]):
        Path(f"{n}.txt").write_text(text)
    before = set(items(opened("*.txt"), "val"))
    for n, text in enumerate(texts[500:]):
        Path(f"more{n}.txt").write_text(text)
    after = set(items(opened("*.txt"), "val"))
    assert len(before - after) <= 5
