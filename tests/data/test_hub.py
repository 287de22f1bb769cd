"""Data sets of Hugging Face: rows of any file, splits, trees of messages, and a hub that may be out of reach."""

import csv
import gzip
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.fake_hub import COMMIT, FakeHub

from niels_gpt.config import DataCfg, SourceCfg
from niels_gpt.data.hash_index import HashIndex
from niels_gpt.data.readers import tables
from niels_gpt.data.readers.records import Dialogue, Document, Message
from niels_gpt.data.sources import fingerprint, read_records, select_sources
from niels_gpt.data.token_cache import open_cache
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import BytesTokenizer
from train.config.load import compose_plan

Rows = Sequence[dict[str, Any]]
TEXTS = [{"text": f'Story {n}.\n\n"Yes, é," said the cat; {"purr " * (n % 7)}end.'} for n in range(300)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(9)
]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(repo: str, **settings: Any) -> SourceCfg:
    return DataCfg(kind="hf", repo=repo, **settings).mixture()[0]


def write(name: str, rows: Rows) -> Path:
    """Write rows as the ending of the name says."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match path.suffix:
        case ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path, row_group_size=100)
        case ".arrow":
            pa = pytest.importorskip("pyarrow")
            table = pa.Table.from_pylist(rows)
            make = pa.ipc.new_file if "feather" in name else pa.ipc.new_stream
            with make(str(path), table.schema) as writer:
                writer.write_table(table)
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".gz":
            path.write_bytes(gzip.compress(lines, mtime=0))
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            path.write_bytes(lines)
    return path


def read(cfg: SourceCfg, kind: str = "documents") -> list[Document | Dialogue]:
    return list(read_records(cfg, "documents" if kind == "documents" else "dialogues"))


def refuse(cfg: SourceCfg) -> DataError:
    with pytest.raises(DataError) as caught:
        read(cfg)
    return caught.value


ENDINGS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow", "feather.arrow"]


@pytest.mark.parametrize("name", ENDINGS)
def test_the_same_documents_from_any_file_give_equal_records_content_and_tokens(name: str) -> None:
    write("plain/a.jsonl", TEXTS)
    write(f"other/{name}", TEXTS)
    tokenizer, read_sets, contents = BytesTokenizer(), [], []
    for folder in ("plain", "other"):
        cfg = DataCfg(kind="hf", repo=f"{folder}/", column="text", tokenizer="bytes", cache_dir=f"cache-{folder}")
        cache = open_cache(cfg.mixture()[0], "documents", tokenizer, cfg, 0)
        read_sets.append(read(cfg.mixture()[0]))
        contents.append((cache.meta.content_sha256, cache.meta.splits))
    assert read_sets[0] == read_sets[1] and len(read_sets[0]) == len(TEXTS)
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_rows_of_messages_are_dialogues_and_nothing_else(name: str) -> None:
    write(f"chats/{name}", CHATS)
    cfg = source("chats/")
    expected = [(Message("user", f"{n}?"), Message("assistant", f"{n}!")) for n in range(9)]
    assert [record.messages for record in read(cfg, "dialogues") if isinstance(record, Dialogue)] == expected
    assert select_sources([cfg], "dialogues") == [cfg]
    with pytest.raises(DataError, match="no documents found"):
        select_sources([cfg], "documents")


def test_a_column_has_documents_only_and_rows_without_text_in_it_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write("a.jsonl", [{"body": "one", "n": 1}, {"body": ""}, {"body": None}, {"body": " \n"}, {"body": "two"}])
    cfg = source("a.jsonl", column="body")
    with caplog.at_level(logging.INFO):
        assert [record.text for record in read(cfg) if isinstance(record, Document)] == ["one", "two"]
    assert "3 rows without text" in caplog.text
    with pytest.raises(DataError, match="no dialogues found"):
        select_sources([cfg], "dialogues")


def test_a_missing_column_lists_the_columns_and_one_of_numbers_says_so() -> None:
    write("a.csv", [{"title": "a", "body": "b"}])
    write("a.jsonl", [{"n": 1}])
    assert re.search("row 1: no column 'text', only title, body", str(refuse(source("a.csv", column="text"))))
    assert "'n' holds int, not text" in str(refuse(source("a.jsonl", column="n")))
    assert "a.csv: row 1" in str(refuse(source("a.csv")))


# --- splits


def test_a_split_is_the_files_that_their_names_or_folders_give_it_or_all_files() -> None:
    names = [
        "data/train-00000-of-00002",
        "data/train-00001-of-00002",
        "dev/a",
        "test/b",
        "train_sft-00000-of-00001",
        "notes",
    ]
    for name in names:
        write(f"named/{name}.jsonl", [{"text": name}])
    write("saved/train/data-00000-of-00001.jsonl", [{"text": "saved"}])
    write("saved/train/dataset_info.json", [{"text": "no data"}])
    write("saved/test/data-00000-of-00001.jsonl", [{"text": "no"}])
    write("plain/x.jsonl", [{"text": "x"}])
    expected = {
        ("named", "train"): names[:2],
        ("named", "validation"): ["dev/a"],
        ("named", "train_sft"): names[4:5],
    }
    expected |= {("saved", "train"): ["saved"], ("plain", "train"): ["x"]}
    for (repo, split), texts in expected.items():
        assert [record.text for record in read(source(repo, split=split)) if isinstance(record, Document)] == texts
    assert "named: has no split 'dev2', only test, train, train_sft, validation" in str(
        refuse(source("named", split="dev2"))
    )
    Path("empty").mkdir()
    assert "has no file of .parquet" in str(refuse(source("empty")))


def test_another_split_validates_as_a_whole_and_a_budget_of_tokens_leaves_it_so() -> None:
    write("d/train.jsonl", TEXTS[:200])
    write("d/validation.jsonl", TEXTS[200:])
    val_tokens = sum(len(row["text"].encode()) + 1 for row in TEXTS[200:])
    for max_tokens in (0, 2000):
        cfg = DataCfg(kind="hf", repo="d", val_split="validation", max_tokens=max_tokens, tokenizer="bytes")
        splits = open_cache(cfg.mixture()[0], "documents", BytesTokenizer(), cfg, 0).meta.splits
        assert splits["val"].ids.count == val_tokens
        assert (2000 <= splits["train"].ids.count < 2100) == bool(max_tokens)


def test_the_fingerprint_follows_the_content_of_local_files_not_their_place() -> None:
    write("a/x.jsonl", TEXTS)
    write("b/c/y.jsonl", TEXTS)
    index = HashIndex(Path("index"))
    first = fingerprint(source("a"), index)
    assert fingerprint(source("b/c"), index) == first
    assert fingerprint(source("a", column="text"), index) != first != fingerprint(source("a", max_tokens=9), index)
    write("b/c/y.jsonl", TEXTS[1:])
    assert fingerprint(source("b/c"), index) != first


# --- damage


def test_damaged_parquet_names_the_file_and_the_place_wherever_it_is_damaged() -> None:
    whole = write("a.parquet", TEXTS).read_bytes()
    for at in (0, 10, 200, len(whole) // 2, len(whole) - 20, len(whole) - 4):
        Path("a.parquet").write_bytes(whole[:at] + b"\xff" * 60 + whole[at + 60 :])
        assert re.search(r"a\.parquet: (cannot be read after )?row \d+", str(refuse(source("a.parquet"))))
        Path("a.parquet").write_bytes(whole[:at])
        assert "a.parquet: cannot be read after row 0" in str(refuse(source("a.parquet")))


def test_damaged_arrow_never_yields_what_is_outside_its_memory() -> None:
    whole = write("a.arrow", TEXTS).read_bytes()
    for at in range(0, len(whole), 97):
        Path("a.arrow").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read(source("a.arrow"))
        except DataError as error:
            assert "a.arrow" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.csv", b'text\none\n"two\n' + b"x" * 50, "after row 1"),
        ("a.csv", b"text,n\none,1\ntwo\n", "row 2: more or fewer cells"),
        ("a.csv", b"text\none\n\xff\n", "a.csv"),
        ("a.jsonl", b'{"text": "one"}\n{"text"\n', "a.jsonl:2"),
        ("a.jsonl", b'{"text": "one"}\n[1]\n', "a.jsonl:2"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)[:40], "a.jsonl.gz"),
    ],
)
def test_a_bad_file_names_its_place(name: str, content: bytes, place: str) -> None:
    Path(name).write_bytes(content)
    assert place in str(refuse(source(name)))


def test_bad_rows_are_skipped_on_request_and_named() -> None:
    write("a.jsonl", [{"text": "one"}, {"label": 3}, {"text": "two"}])
    assert "a.jsonl:2" in str(refuse(source("a.jsonl")))
    assert len(read(source("a.jsonl", on_bad_line="skip"))) == 2


def test_a_row_group_is_not_held_in_memory_at_once() -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [os.urandom(1000).hex() for _ in range(40_000)]
    parquet.write_table(pa.table({"text": texts}), "big.parquet", row_group_size=len(texts), use_dictionary=False)
    del texts
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in tables.read_rows(Path("big.parquet")):
        most = max(most, pool.bytes_allocated() - before)
    assert most < 16 << 20 < Path("big.parquet").stat().st_size


# --- trees


def message(id: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    return {
        "message_id": id,
        "parent_id": parent,
        "message_tree_id": id[0],
        "role": role,
        "text": text,
        "rank": rank,
    }


TREES = [
    message("a0", None, "prompter", "Hi"),
    message("a1", "a0", "assistant", "worse", 1),
    message("a2", "a0", "assistant", "best", 0),
    message("a3", "a0", "assistant", "unranked"),
    message("a4", "a1", "prompter", "of the worse"),
    message("a5", "a2", "prompter", "and then?"),
    message("a6", "a5", "assistant", "this"),
    message("a7", "a6", "prompter", "without an answer"),
    message("b0", None, "prompter", "nobody answers"),
    message("c0", None, "prompter", "Ho"),
    message("c1", "c0", "assistant", "ho"),
    message("c1", "c1", "assistant", "a circle"),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_tree_of_messages_becomes_the_dialogue_of_its_best_ranked_replies(name: str) -> None:
    write(name, TREES)
    turns = [
        [message.content for message in record.messages]
        for record in read(source(name), "dialogues")
        if isinstance(record, Dialogue)
    ]
    assert turns == [["Hi", "best", "and then?", "this"], ["Ho", "ho", "a circle"]]


# --- budgets


@pytest.mark.parametrize("kind", ["hf", "jsonl", "text", "synthetic"])
def test_max_tokens_stops_a_source_of_any_kind_at_so_many_training_tokens(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write("a.jsonl", TEXTS * 20)
    Path("a.txt").write_text("\n\n".join(row["text"] for row in TEXTS * 20))
    size = 10_000_000 if kind == "synthetic" else 20  # which would take minutes to read to its end
    files = {"jsonl": ("a.jsonl",), "text": ("a.txt",)}.get(kind, ())
    cfg = DataCfg(
        kind=kind,
        repo="a.jsonl",
        files=files,
        size=size,
        documents="blank_lines",
        max_tokens=5000,
        tokenizer="bytes",
    )
    with caplog.at_level(logging.INFO):
        cache = open_cache(cfg.mixture()[0], "documents", BytesTokenizer(), cfg, 0)
    assert 5000 <= cache.meta.splits["train"].ids.count < 5500
    assert cache.meta.splits["val"].ids.count < 1000
    assert "max_tokens=5000" in caplog.text


# --- the hub


@pytest.mark.parametrize(
    "name", ["tinystories", "wikitext103", "fineweb_edu", "dolly", "dolly15k", "oasst1", "smoltalk"]
)
def test_presets_name_their_data_set_licence_and_size(name: str) -> None:
    (cfg, *_) = compose_plan([f"data={name}", "phase=sft", "init_from=x"])
    (found,) = cfg.data.mixture()
    assert found.kind == "hf" and "/" in found.repo and found.hub_dir == "cache/hub"
    comment = (ROOT / "conf" / "data" / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert re.search("CDLA|CC BY|ODC|Apache", comment) and re.search(r"\d", comment)


@pytest.mark.parametrize(("first", "second"), [("fineweb_edu", "dolly"), ("hf", "oasst1")])
def test_the_data_of_the_second_phase_has_no_setting_of_the_first(first: str, second: str) -> None:
    other = ["data.repo=a/b", "data.column=text", "data.revision=v1"] if first == "hf" else []
    _, sft = compose_plan([f"data={first}", *other, f"+data@sft.data={second}"])
    (alone,) = compose_plan([f"data={second}", "phase=sft", "init_from=x"])
    assert sft.data.mixture() == alone.data.mixture()


def test_your_own_dialogues_after_a_data_set_have_neither_its_name_nor_its_budget() -> None:
    _, sft = compose_plan(["data=fineweb_edu", "+data@sft.data=jsonl", "sft.data.files=a.jsonl"])
    assert (sft.data.label, sft.data.max_tokens, sft.data.val_split) == ("jsonl", 0, "")


def test_a_hub_out_of_reach_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refuse(source("owner/name", column="text"))
    assert "owner/name" in str(error) and "copy its files into a folder and set data.repo=FOLDER/" in error.hint
    assert "no such folder" in str(refuse(source("./owner/name")))


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    write("hub/owner/name/data/train-00000-of-00001.parquet", TEXTS)
    write("hub/owner/name/data/validation-00000-of-00001.parquet", TEXTS[:9])
    with FakeHub(tmp_path / "hub") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


READ = """
import json, sys
from niels_gpt.config import DataCfg
from niels_gpt.data.sources import describe, read_records
from niels_gpt.errors import DataError
cfg = DataCfg(kind="hf", repo="owner/name", **json.loads(sys.argv[1])).mixture()[0]
try:
    texts = [record.text for record in read_records(cfg, "documents")]
    print(json.dumps([texts, describe(cfg)["revision"]]))
except DataError as error:
    print(json.dumps([str(error), error.hint]))
"""


@pytest.mark.long
def test_a_data_set_of_the_hub_is_read_whole_or_streamed_pinned_and_again_offline(fake_hub: FakeHub) -> None:
    pytest.importorskip("datasets")

    def ask(online: bool, **settings: Any) -> Any:
        env = {**os.environ, "HF_ENDPOINT": fake_hub.url, "HF_HOME": "home", "PYTHONPATH": str(ROOT)}
        env["HF_HUB_OFFLINE"] = "01"[not online]
        command = [sys.executable, "-P", "-c", READ, json.dumps(settings)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    whole = [[row["text"] for row in TEXTS], COMMIT]
    assert ask(True, column="text") == whole
    asked = len(fake_hub.asked)
    assert ask(False, column="text") == ask(True, column="text") == whole
    assert len(fake_hub.asked) <= asked + 2, "what is there is not fetched again"
    assert ask(True, split="validation") == [whole[0][:9], COMMIT]
    streamed, revision = ask(True, column="text", streaming=True, max_tokens=100, cache_dir="other")
    assert streamed == whole[0][: len(streamed)] and 10 < len(streamed) < 100 and revision == COMMIT
    assert ask(False, column="text", streaming=True, max_tokens=100, cache_dir="other")[0] == streamed
    assert ask(False, column="text", revision=COMMIT, cache_dir="third")[1].startswith("without a network")
    assert "no split 'nope', only train, validation" in ask(True, split="nope")[0]
    assert "Available" in ask(True, subset="nope")[0]
