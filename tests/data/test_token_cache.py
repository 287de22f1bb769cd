"""Token files: written once, whole or not at all; damage is named; no text stands on both sides."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree
from unittest import mock

import pytest
import torch
from conftest import ROOT

from niels_gpt.config import DataCfg
from niels_gpt.data.cache.hash_index import INDEX_FILE, HashIndex, hash_file
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.data.cache.token_files import TokenFiles
from niels_gpt.data.readers.records import Document
from niels_gpt.data.sources import Want, read_records
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import END_OF_TEXT, BytesTokenizer

BYTES = BytesTokenizer()


def data(tmp_path: Path, **changes: object) -> DataCfg:
    settings = {"kind": "synthetic", "tokenizer": "bytes", "size": 100, "cache_dir": str(tmp_path / "cache")}
    return DataCfg.model_validate(settings | changes)


def opened(cfg: DataCfg, split: str = "train", want: Want = "documents", limit: int = 200) -> TokenFiles:
    return open_cache(cfg.mixture()[0], want, BYTES, cfg, limit).open(split)


def test_the_files_hold_every_document_once_split_by_name(tmp_path: Path) -> None:
    cfg = data(tmp_path)
    end = BYTES.special[END_OF_TEXT]
    texts: dict[str, list[str]] = {}
    for split in ("train", "val"):
        files = opened(cfg, split)
        items = [files.ids[a:b].tolist() for a, b in zip(files.offsets[:-1], files.offsets[1:], strict=True)]
        assert all(item[-1] == end for item in items)
        texts[split] = [BYTES.decode(item) for item in items]
    documents = (r for r in read_records(cfg.mixture()[0], "documents") if isinstance(r, Document))
    assert sorted(texts["train"] + texts["val"]) == sorted(document.text for document in documents)
    assert texts["val"] and len(texts["val"]) < 20
    assert not set(texts["train"]) & set(texts["val"])


def test_a_warm_start_builds_nothing_and_reads_neither_the_corpus_nor_all_tokens_again(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"the number {n} is {n * n}" for n in range(300)))
    os.utime(text, ns=(0, 0))
    cfg = data(tmp_path, kind="text", files=(str(text),), documents="blank_lines")
    first = opened(cfg)
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.ids")}
    with mock.patch("niels_gpt.data.cache.hash_index.hash_file", side_effect=AssertionError):
        assert torch.equal(opened(cfg).ids, first.ids)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.ids")} == built != {}
    text.write_text(text.read_text().upper())
    assert not torch.equal(opened(cfg).ids, first.ids), "an edited file is read again"


def test_a_file_that_may_still_be_written_to_is_hashed_again(tmp_path: Path) -> None:
    """Two writes in one tick of the clock leave the same size and time."""
    index, path, now = HashIndex(tmp_path), tmp_path / "a.txt", time.time_ns()
    for content in ("one", "two"):
        path.write_text(content)
        os.utime(path, ns=(now, now))
        assert index.sha256(path) == hash_file(path)
    os.utime(path, ns=(0, 0))
    index.sha256(path)
    index.save()
    with mock.patch("niels_gpt.data.cache.hash_index.hash_file", side_effect=AssertionError):
        assert HashIndex(tmp_path).sha256(path) == hash_file(path)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b'{"a": [null, 2, "x"]}'])
def test_a_damaged_index_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    cfg = data(tmp_path)
    first = opened(cfg)
    (tmp_path / "cache" / INDEX_FILE).write_bytes(content)
    assert torch.equal(opened(cfg).ids, first.ids)


def content_of(tmp_path: Path, *dialogues: str) -> str:
    """The content hash of dialogues, each told by the first letters of its roles; message n says n."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    rows = [[{"role": roles[r], "content": f"{n}"} for n, r in enumerate(turns)] for turns in dialogues]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    cfg = data(tmp_path, kind="jsonl", files=(str(tmp_path / "a.jsonl"),))
    return open_cache(cfg.mixture()[0], "dialogues", BYTES, cfg, 200).meta.content_sha256[:16]


def test_the_same_texts_in_other_roles_are_other_content(tmp_path: Path) -> None:
    others = ("uaua", "uaaa", "uaau", "auua", "auaa", "suaa", "suua", "saua", "saaa")
    assert len({content_of(tmp_path, "ua", "sua", turns) for turns in others}) == len(others)


def test_the_content_hash_is_logged_and_nothing_of_dialogues_that_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    assert f"content hash {content_of(tmp_path, 'ua', 'suaua')}" in caplog.text
    assert "of 2 dialogues" not in caplog.text


def test_a_file_of_another_size_or_with_another_id_is_refused(tmp_path: Path) -> None:
    cfg = data(tmp_path)
    count = len(opened(cfg).ids)
    ids = next((tmp_path / "cache").rglob("train.ids"))
    whole = ids.read_bytes()
    for damaged, said in {
        whole[:-2]: rf"train\.ids: {2 * count - 2} bytes, but {count} x uint16 are {2 * count}",
        whole[:-2] + b"\x2c\x01": r"train\.ids is damaged: its sha256 differs from meta\.json",
    }.items():
        ids.write_bytes(damaged)
        with pytest.raises(DataError, match=said) as caught:
            opened(cfg)
        assert caught.value.hint == f"delete {ids.parent}; it will be rebuilt"


def test_dialogues_carry_their_targets(tmp_path: Path) -> None:
    files = opened(data(tmp_path), want="dialogues")
    assert len(files.target_mask) == len(files.ids) == int(files.offsets[-1])
    assert 0 < int(files.target_mask.long().sum()) < len(files.ids)
    assert files.ids.dtype == torch.uint16


@pytest.mark.slow
def test_token_files_made_by_other_code_have_another_name(tmp_path: Path) -> None:
    copytree(ROOT / "niels_gpt", tmp_path / "niels_gpt")
    code = (
        "from pathlib import Path; from niels_gpt.data.sources import *; "
        "print(fingerprint(SourceCfg(kind='synthetic'), HashIndex(Path('.'))))"
    )
    names = []
    unrelated = ("loss.py", "loss.py", "data/batches.py", "data/statistics.py", "data/cache/progress.py")
    related = ("seeds.py", "tokenizer.py", "data/readers/local_files.py")
    for name in (*unrelated, *related):
        with (tmp_path / "niels_gpt" / name).open("a") as file:
            file.write("# changed")
        names.append(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": "."}))
    assert len(set(names[: len(unrelated)])) == 1 and len(set(names)) == 1 + len(related)
