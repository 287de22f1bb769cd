"""Builds of token files: in batches, going on after a kill, and equal to the byte to undisturbed ones."""

import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import cli
from faults.folders import hashes, leftovers

from niels_gpt.config import DataCfg
from niels_gpt.data import validation_split
from niels_gpt.data.cache import progress, token_build
from niels_gpt.data.cache.token_cache import build_tokenizer, open_cache
from niels_gpt.data.cache.token_files import META_FILE, TokenCache, write_meta
from niels_gpt.data.readers.records import SECTION
from niels_gpt.data.sources import Want, read_records
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import BytesTokenizer, Tokenizer


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Counting(BytesTokenizer):
    """Counts the characters that it encodes; raises as Ctrl-C does once it is to encode more than `limit`."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.left, self.seen = limit, 0

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        self.seen += sum(map(len, texts))
        if self.seen > self.left:
            raise KeyboardInterrupt
        return super().encode_batch(texts)


def data(**settings: Any) -> DataCfg:
    usual = {"kind": "jsonl", "files": "a", "tokenizer": "bytes", "cache_dir": "cache"}
    return DataCfg.model_validate(usual | settings)


def build(cfg: DataCfg, want: Want, tokenizer: Tokenizer | None = None) -> TokenCache:
    """Build token files in small batches, which are saved often."""
    with mock.patch.multiple(token_build, BATCH=3000, BUFFER=1500):
        return open_cache(cfg.mixture()[0], want, tokenizer or BytesTokenizer(), cfg, 60)


def make_text(draw: random.Random, size: int) -> str:
    return "".join(draw.choices("abcdefgh éü  \n\n.", k=size)).strip()


def write_rows(path: str, seed: int = 1) -> None:
    draw = random.Random(seed)
    rows = [{"text": make_text(draw, size)} for size in [400] * 60 + [3 * SECTION, 5 * SECTION]]
    Path(path).write_text("\n".join(map(json.dumps, rows)))


def write_text(path: str) -> None:
    Path(path).write_text(make_text(random.Random(1), 10 * SECTION))


def write_dialogues(path: str) -> None:
    draw = random.Random(1)
    rows = [{"prompt": (text := make_text(draw, n)), "completion": text[:9]} for n in [20, 30, 40, 90] * 100]
    Path(path).write_text("\n".join(map(json.dumps, rows)))


CASES: dict[str, tuple[Callable[[str], None], Want, dict[str, Any]]] = {
    "documents": (write_rows, "documents", {}),
    "a text cut in two": (write_text, "documents", {"kind": "text"}),
    "a budget": (write_rows, "documents", {"max_tokens": 100_000}),
    "a budget and a file to validate on": (write_rows, "documents", {"max_tokens": 100_000, "val_files": "b"}),
    "dialogues, some too long": (write_dialogues, "dialogues", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_build_goes_on_and_ends_as_one_that_was_not(case: str) -> None:
    write, want, settings = CASES[case]
    write("a")
    write_rows("b", 2)
    cfg = data(**settings)
    straight = build(cfg.model_copy(update={"cache_dir": "straight"}), want, whole := Counting())
    stops = 0
    while stops < 50:
        try:
            build(cfg, want, Counting(whole.seen / 3))
            break
        except KeyboardInterrupt:
            stops += 1
            assert leftovers(Path("cache")), "what is done stays"
    assert 2 <= stops <= 6, "what was done is not done again"
    assert hashes(Path("cache")) == hashes(Path("straight")) and not leftovers(Path("cache"))
    if budget := settings.get("max_tokens"):
        assert len(straight.open("train").ids) - budget in (0, 1), "a budget cuts a document, which ends"


def test_the_speed_of_a_build_that_goes_on_leaves_out_what_was_tokenized_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    write_rows("a")
    with (
        mock.patch.object(token_build, "write_meta", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        build(data(), "documents")
    build(data(), "documents", again := Counting())
    speeds = [message.rpartition(", ")[2] for message in caplog.messages if "data: tokenized" in message]
    assert again.seen == 0 and speeds[1] == "0 bytes/s" != speeds[0]


def interrupt_build(limit: int = 90_000) -> DataCfg:
    """Begin to build the token files of some rows, and return their settings."""
    write_rows("a")
    with pytest.raises(KeyboardInterrupt):
        build(data(), "documents", Counting(limit))
    return data()


def count_characters(cfg: DataCfg) -> int:
    """Build the files that were interrupted, which end as if they were not; return how much was encoded."""
    build(cfg, "documents", again := Counting())
    build(cfg.model_copy(update={"cache_dir": "straight"}), "documents")
    assert hashes(Path("cache")) == hashes(Path("straight"))
    return again.seen


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[1]",
        '{"records": -1}',
        '{"records": 5, "sizes": {"train": {"ids": 99999999}}}',
        '{"sizes": {"x": 1}}',
    ],
)
def test_a_damaged_record_of_progress_starts_the_build_again(damaged: str) -> None:
    cfg = interrupt_build()
    next(Path("cache").glob("*/progress.json")).write_text(damaged)
    assert count_characters(cfg) > 90_000


def test_what_was_left_of_another_text_is_not_taken_up_and_can_be_removed() -> None:
    cfg = interrupt_build()
    left = leftovers(Path("cache"))
    write_rows("a", 2)
    build(cfg, "documents", whole := Counting())
    assert whole.seen > 90_000 and leftovers(Path("cache")) == left
    listed = json.loads(cli("--json", cwd=Path.cwd(), script="cache").stdout)
    assert str(left[0]) in [entry["path"] for entry in listed]
    assert cli("--older-than", "0", "--yes", cwd=Path.cwd(), script="cache").returncode == 0
    assert not leftovers(Path("cache")) and not list(Path("cache").glob(".split-*.json"))


def test_a_link_in_the_place_of_what_was_left_is_not_written_through() -> None:
    cfg = interrupt_build()
    os.rename(left := leftovers(Path("cache"))[0], "mine")
    left.symlink_to(Path.cwd() / "mine")
    before = hashes(Path("mine"))
    build(cfg, "documents")
    assert hashes(Path("mine")) == before


def test_a_first_start_reads_a_source_twice_and_once_more_for_the_tokenizer() -> None:
    write_rows("a")
    cfg = data(tokenizer="bpe")
    with mock.patch.object(validation_split, "read_records", side_effect=read_records) as reads:
        build(cfg, "documents", build_tokenizer(cfg, "documents", 300))
    assert reads.call_count == 3
    assert not list(Path("cache").glob(".split-*.json"))


def test_without_a_terminal_the_log_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    monkeypatch.setattr(progress, "STEP", 100_000)
    write_text("a")
    build(data(kind="text"), "documents")
    assert {"data: reading text: 0.1 MB", "data: tokenizing text: 0.1 of 0.2 MB"} <= {*caplog.messages}


def test_a_damaged_split_is_made_again() -> None:
    cfg = interrupt_build(0)
    split = next(Path("cache").glob(".split-*.json"))
    split.write_text(split.read_text().replace("1", "2"))
    count_characters(cfg)


def damage(path: Path) -> None:
    """Change a byte, but neither size nor time."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_data_verify_finds_damage_that_kept_size_and_time() -> None:
    write_rows("a")
    os.utime("a", ns=(0, 0))
    cfg = data()
    cache = build(cfg, "documents")
    cache.open("val")
    damage(cache.folder / "val.ids")
    build(cfg, "documents").open("val")
    verifying = cfg.model_copy(update={"verify": True})
    with pytest.raises(DataError, match=r"val\.ids is damaged"):
        build(verifying, "documents").open("val")
    damage(Path("a"))
    assert build(cfg, "documents").folder == cache.folder
    with pytest.raises(DataError, match="^a:1: "):
        build(verifying, "documents")


def test_ids_out_of_range_are_refused_whatever_meta_json_says() -> None:
    write_rows("a")
    cache = build(data(), "documents")
    path, meta = cache.folder / "val.ids", json.loads((cache.folder / META_FILE).read_text())
    del meta["sha256"]
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x01")
    meta["splits"]["val"]["ids"]["sha256"] = hashes(cache.folder)["val.ids"]
    write_meta(cache.folder, meta)
    with pytest.raises(DataError, match=r"val\.ids has the id 256, but V is 256$"):
        build(data(), "documents").open("val")
