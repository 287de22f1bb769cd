"""Reading the user's files: the same records from any kind of file, and errors that name the place."""

import gzip
import json
import logging
import os
import re
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from niels_gpt.config import DataCfg, SourceCfg
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.data.readers import json_rows, local_files, tables
from niels_gpt.data.readers.open_files import ZSTD
from niels_gpt.data.readers.records import SECTION, Dialogue, Document
from niels_gpt.data.readers.row_shapes import log_once
from niels_gpt.data.sources import read_records, select_sources
from niels_gpt.errors import ConfigError, DataError
from niels_gpt.tokenizer import BytesTokenizer

Rows = Sequence[dict[str, Any]]
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD = json.dumps(CHAT)
TEXTS = [{"text": f'Story {n}.\n\n"Yes, é," said the cat; {"purr " * (n % 7)}end.'} for n in range(300)]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    log_once.cache_clear()
    caplog.set_level(logging.INFO, "niels_gpt")


def text(*names: str, **settings: Any) -> SourceCfg:
    return SourceCfg(kind="text", files=names, **settings)


def jsonl(*names: str, **settings: Any) -> SourceCfg:
    return SourceCfg(kind="jsonl", files=names, **settings)


def hf(repo: str, **settings: Any) -> SourceCfg:
    return SourceCfg(kind="hf", repo=repo, **settings)


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def compress_zstd(content: bytes) -> bytes:
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    compressed: bytes = zstd.compress(content)
    return compressed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": compress_zstd}


def write_rows(name: str, rows: Rows) -> bytes:
    """Write rows as the ending of the name says; return the content."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix in (".parquet", ".arrow", ".csv"):
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_pylist(rows)
        if path.suffix == ".arrow":
            with (pa.ipc.new_file if "feather" in name else pa.ipc.new_stream)(name, table.schema) as batches:
                batches.write_table(table)
        elif path.suffix == ".csv":
            pytest.importorskip("pyarrow.csv").write_csv(table, name)
        else:
            pytest.importorskip("pyarrow.parquet").write_table(table, name, row_group_size=100)
    elif path.suffix == ".txt":
        write(name, "<|end|>".join(row["text"] for row in rows))
    else:
        compress = COMPRESS.get(path.suffix, bytes)
        write(name, json.dumps(rows) if path.suffix == ".json" else compress(lines[:99]) + compress(lines[99:]))
    return path.read_bytes()


def read(cfg: SourceCfg) -> list[str]:
    return [record.text for record in read_records(cfg, "documents") if isinstance(record, Document)]


def read_turns(cfg: SourceCfg) -> list[list[str]]:
    records = (record for record in read_records(cfg, "dialogues") if isinstance(record, Dialogue))
    return [[message.content for message in record.messages] for record in records]


def refuse(cfg: SourceCfg) -> DataError:
    with pytest.raises(DataError) as caught:
        deque(local_files.read_documents(cfg), maxlen=0)
    return caught.value


def build(cfg: DataCfg) -> tuple[str, Any]:
    """Return the content hash and the hashes of a source's token files."""
    meta = open_cache(cfg.mixture()[0], "documents", BytesTokenizer(), cfg, 0).meta
    return meta.content_sha256, meta.splits


# --- which files


def test_files_are_sorted_and_read_once_from_globs_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.md", "a[1].txt", "a1.txt"):
        write(name, name)
    os.symlink("a.txt", "z.txt")
    assert read(text("**/*.txt", "b.txt", "./a.txt")) == ["a.txt", "a1.txt", "a[1].txt", "b.txt", "deep/er/c.txt"]
    assert read(text("deep/**")) == ["deep/d.md", "deep/er/c.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(text("~/a[1].txt")) == ["a[1].txt"]


def test_a_path_without_files_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt", "a")
    write("other/e.png", "e")
    for pattern in ("no.txt", "no/**", "", "nul\0", "other"):
        error = refuse(text("a.txt", pattern))
        named = "other has no .txt, .text, .md, " if pattern == "other" else "data.files: no file matches"
        assert str(error).startswith(named) and str(tmp_path) in error.hint and "FOLDER/**/*.py" in error.hint
    assert str(refuse(hf("other"))).startswith("other has no .parquet, .arrow, .csv, ")
    write("tables/a.csv", "text")
    assert refuse(text("tables")).hint == "use data=hf data.repo=tables"
    monkeypatch.setattr(os, "scandir", lambda path: os.open(f"{path}/closed", os.O_RDONLY))
    assert str(refuse(text("other"))) == "other/closed: cannot be read (No such file or directory)"


def test_a_folder_is_its_files_of_the_kind_and_they_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("n/b.txt", "n/in/c.MD", "n/.hidden.txt", "n/.git/d.md", "n/e.png", "n/f.txt.gz.part", "n/h.rst"):
        write(name, name)
    for name in ("n/a.json", "n/in/b.ndjson"):
        write(name, GOOD)
    write("n/empty.md", "")
    write("n/g.md.gz", gzip.compress(b"packed"))
    write("n/c.jsonl.gz", gzip.compress(GOOD.encode()))
    assert read(text("n")) == ["n/b.txt", "packed", "n/h.rst", "n/in/c.MD"]
    assert len(read_turns(jsonl("n/"))) == 3
    logged = ["data: text: files: 5, documents: 4", "data: jsonl: files: 3, rows: 3 messages"]
    assert [record.message for record in caplog.records] == logged


def test_a_split_is_the_files_that_are_named_so_and_others_train_unless_they_are_held_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shards = [f"data/train-0000{n}-of-00002.jsonl" for n in (0, 1)]
    folders = {
        "named": [*shards, "dev/a.jsonl", "test/b.jsonl", "train_sft-00000-of-00001.jsonl", "notes.jsonl"],
        "saved": ["train/data-00000-of-00001.jsonl", "train/dataset_info.json", "test/data-00000-of-00001.jsonl"],
        "plain": ["stories.jsonl", "more.jsonl", "stories-val.jsonl", ".hidden/train.jsonl"],
    }
    for folder, name in ((folder, name) for folder, names in folders.items() for name in names):
        write_rows(f"{folder}/{name}", [{"text": name}])
    expected = {
        ("named", "train"): shards,
        ("named", "dev"): ["dev/a.jsonl"],
        ("named", "train_sft"): ["train_sft-00000-of-00001.jsonl"],
        ("saved", "train"): ["train/data-00000-of-00001.jsonl"],
        ("plain", "train"): ["more.jsonl", "stories.jsonl"],
        ("plain", "val"): ["stories-val.jsonl"],
    }
    assert {case: read(hf(case[0], split=case[1])) for case in expected} == expected
    logged = [record.message.partition("not read: ")[2] for record in caplog.records]
    validates = "{0} (data.val_split={0} validates on it)".format
    assert list(filter(None, logged)) == [validates("dev"), validates("val")]
    error = str(refuse(hf("saved", split="dev")))
    assert error.startswith("saved has no split 'dev', only test/data-00000-of-00001.jsonl, train/")


def test_the_fingerprint_follows_content_and_settings_not_paths() -> None:
    write("a/x.jsonl", GOOD)
    write("b/c/y.jsonl", GOOD)
    same = [hf("a"), hf("b/c"), hf("a", weight=2.0)]
    others = [jsonl("a"), text("a/*"), text("a/*", documents="blank_lines"), text("a/*", separator="</s>")]
    others += [hf("a", on_bad_line="skip"), hf("a", column="text")]
    assert len({local_files.fingerprint(cfg) for cfg in same}) == 1
    assert len({local_files.fingerprint(cfg) for cfg in (hf("a"), *others)}) == 1 + len(others)
    first, capped = local_files.fingerprint(hf("b")), local_files.fingerprint(hf("b", max_tokens=9))
    write("b/a.jsonl", GOOD * 2)
    second, other = local_files.fingerprint(hf("b")), local_files.fingerprint(hf("b", max_tokens=9))
    os.rename("b/a.jsonl", "b/z.jsonl")
    assert local_files.fingerprint(hf("b")) == second != first, "a name is not content"
    assert len({capped, other, local_files.fingerprint(hf("b", max_tokens=9))}) == 3, "the first file is read"


# --- the same from any file

ENDINGS = ["a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet", "a.arrow", "feather.arrow"]


@pytest.mark.parametrize("name", ENDINGS)
def test_the_same_documents_from_any_file_give_equal_token_files_and_content_hashes(name: str) -> None:
    write_rows("plain/a.jsonl", TEXTS)
    write_rows(f"other/{name}", TEXTS)
    expected = build(DataCfg(kind="jsonl", files=("plain",), tokenizer="bytes", cache_dir="first"))
    cfg = DataCfg(kind="hf", repo="other/", column="text", tokenizer="bytes")
    if name == "a.txt":
        cfg = DataCfg(kind="text", files=("other",), separator="<|end|>", tokenizer="bytes")
    assert build(cfg) == expected
    assert read(cfg.mixture()[0]) == [row["text"] for row in TEXTS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_rows_of_messages_are_dialogues_and_nothing_else(name: str) -> None:
    write_rows(f"chats/{name}", [CHAT] * 2)
    assert read_turns(hf("chats/")) == [["hi", "hello"]] * 2
    assert select_sources([hf("chats/")], "dialogues") == [hf("chats/")]
    with pytest.raises(DataError, match="no documents found"):
        select_sources([hf("chats/")], "documents")


def test_the_first_rows_of_each_file_tell_what_kinds_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    """A corpus is not read as a whole to learn its kind: what comes later is not even parsed."""
    rows = "\n".join(json.dumps({"text": f"row {n}"}) for n in range(local_files.FIRST_ROWS))
    write("texts.jsonl", rows + "\nnot JSON\n" + GOOD)
    assert local_files.has_rows(jsonl("texts.jsonl"), Document)
    assert not local_files.has_rows(jsonl("texts.jsonl"), Dialogue) and not caplog.records
    write("zchats.jsonl", GOOD)
    assert local_files.has_rows(jsonl("*.jsonl"), Dialogue), "a second file is looked at too"


def test_a_column_has_documents_only_and_counts_rows_without_text(caplog: pytest.LogCaptureFixture) -> None:
    write_rows("a.jsonl", [{"body": body, "n": 1} for body in ("one", "", None, " \n", "two")])
    cfg = hf("a.jsonl", column="body")
    assert read(cfg) == ["one", "two"] and read_turns(cfg) == []
    assert "rows: 3 without text, 2 text" in caplog.text
    assert str(refuse(hf("a.jsonl", column="text"))) == "a.jsonl:1: no column 'text', only body, n"
    assert "'n' holds int, not text" in str(refuse(hf("a.jsonl", column="n")))


KEYS = ("message_id", "parent_id", "role", "text", "rank")
TREES = [
    ("a0", None, "prompter", "Hi", None),
    *(("a1", "a0", "assistant", "worse", 1), ("a2", "a0", "assistant", "best", 0)),
    *(("a3", "a0", "assistant", "unranked", None), ("a4", "a1", "prompter", "of the worse", None)),
    *(("a5", "a2", "prompter", "and then?", None), ("a6", "a5", "assistant", "this", None)),
    ("a7", "a6", "prompter", "without an answer", None),
    ("b0", None, "prompter", "nobody answers", None),
    ("c0", None, "prompter", "Ho", None),
    *(("c1", "c0", "assistant", "ho", None), ("c1", "c1", "assistant", "a circle", None)),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_tree_of_messages_becomes_the_dialogue_of_its_best_ranked_replies(name: str) -> None:
    write_rows(name, [dict(zip(KEYS, row, strict=True)) | {"message_tree_id": row[0][0]} for row in TREES])
    assert read_turns(hf(name)) == [["Hi", "best", "and then?", "this"], ["Ho", "ho", "a circle"]]
    assert len(read(hf(name, column="text"))) == len(TREES)


# --- budgets


def test_another_split_validates_as_a_whole_is_logged_as_such_and_a_budget_of_tokens_leaves_it_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_rows("d/train.jsonl", TEXTS[:200])
    write_rows("d/validation.jsonl", TEXTS[200:])
    val_tokens = sum(len(row["text"].encode()) + 1 for row in TEXTS[200:])
    for max_tokens in (0, 2000):
        cfg = DataCfg(kind="hf", repo="d", val_split="validation", max_tokens=max_tokens, tokenizer="bytes")
        _, splits = build(cfg)
        assert splits["val"].ids.count == val_tokens
        assert (2000 <= splits["train"].ids.count < 2100) == bool(max_tokens)
    assert "data: hf, to validate on: files: 1, rows: 100 text" in caplog.messages


@pytest.mark.parametrize("kind", ["hf", "jsonl", "text", "synthetic"])
def test_max_tokens_stops_a_source_of_any_kind(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    write_rows("a.jsonl", TEXTS * 20)
    write_rows("a.txt", TEXTS * 20)
    files = ("a.txt" if kind == "text" else "a.jsonl",)
    settings: dict[str, Any] = {"repo": "a.jsonl", "files": files, "separator": "<|end|>", "max_tokens": 5000}
    _, splits = build(DataCfg(kind=kind, size=10_000_000, tokenizer="bytes", **settings))  # minutes to their end
    assert 5000 <= splits["train"].ids.count < 5500 and splits["val"].ids.count < 1000
    assert "max_tokens=5000" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"documents": "blank_lines"}], ids=["a long text", "many short ones"])
def test_max_tokens_leaves_validation_its_share_of_little_text(settings: dict[str, Any]) -> None:
    write("a.txt", "\n\n".join(f"{n} " + "the words of this text " * 20 for n in range(400)).encode())
    cfg = DataCfg(kind="text", files=("a.txt",), max_tokens=20_000, tokenizer="bytes", **settings)
    _, splits = build(cfg)
    train, val = (splits[split].ids.count for split in ("train", "val"))
    assert train == 20_001 and 0.04 < val / (train + val) < 0.06


# --- plain text


def test_a_document_is_a_file_without_bom_and_with_plain_line_ends_or_a_paragraph() -> None:
    write("a.txt", b"\xef\xbb\xbf  one\r\nmore\r\n\r\n \t\n\ntwo \xc3\xa9\r\n")
    assert read(text("a.txt")) == ["  one\nmore\n\n \t\n\ntwo é\n"]
    assert read(text("a.txt", documents="blank_lines")) == ["  one\nmore", "two é"]


@pytest.mark.parametrize("end", ["\n\n", "\n", " "], ids=["blank line", "line end", "anywhere"])
def test_a_long_file_is_cut_at_the_best_place_and_nothing_is_lost(end: str) -> None:
    whole = "".join(f"line {i} é{end}" for i in range(10_000))
    write("a.txt", whole)
    pieces = list(local_files.read_documents(text("a.txt")))
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == whole
    assert all(SECTION <= len(piece.text) < 4 * SECTION for piece in pieces[:-1])
    assert end == " " or all(piece.text.endswith(end) for piece in pieces)


@pytest.mark.parametrize("mark", ["<|endoftext|>", "\n---\n", "x"])
def test_separators_cut_documents_and_are_removed(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stories = ["", "one", "  two\n\n\nlines", "é" * 300, *("y" * (100 - n) for n in range(20)), "end", " \n"]
    write("a.txt", mark.join(stories))
    expected = [story for story in stories if story.strip()]
    for block in (1, 100, 1 << 18):
        monkeypatch.setattr(local_files, "BLOCK", block)
        monkeypatch.setattr(local_files, "SECTION", min(block, SECTION))
        assert [one.text for one in local_files.read_documents(text("a.txt", separator=mark))] == expected
    monkeypatch.setattr(local_files, "BLOCK", 1)
    monkeypatch.setattr(local_files, "SECTION", 1)
    monkeypatch.setattr(local_files, "MAX_LINE", 20)  # characters; longer texts are cut, but no mark is
    assert not {*"<|>-x"} & {*"".join(read(text("a.txt", separator=mark)))}


def test_many_marks_are_warned_of_once_and_so_is_an_absent_separator(caplog: pytest.LogCaptureFixture) -> None:
    write("a.txt", "a<|endoftext|>" * 12)
    write("b.txt", "a<|endoftext|>" * 8 + "</s>" * 19)
    for cfg in (text("b.txt"), text("?.txt"), text("?.txt"), text("?.txt", separator="<|end|>")):
        read(cfg)
    assert len(read(text("?.txt", separator="oftext"))) == 22
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "data: text: <|endoftext|> is in the text 20 times and is learned as text; "
        """to split documents there, add 'data.separator="<|endoftext|>"'""",
        "data: text: data.separator='<|end|>' is nowhere in the text",
    ]


# --- JSON


def test_an_array_is_rows_whatever_its_layout_and_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f'{number} é \\ "],[{{'} for number in range(50)]
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr(json_rows, "READ_CHARS", chunk)
        for indent, start in ((None, ""), (2, "\ufeff"), (None, "\r\n ")):
            write("a.json", start + json.dumps(rows, indent=indent) + "\n")
            assert read(jsonl("a.json")) == [row["text"] for row in rows]
        write("a.json", f"[{GOOD}, [1], {GOOD}]")
        assert str(refuse(jsonl("a.json"))) == "a.json: row 2: not an object with keys"
        assert len(read_turns(jsonl("a.json", on_bad_line="skip"))) == 2


def test_skipped_lines_are_counted_and_the_first_is_named_even_one_over_the_cap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE", 1 << 10)
    fits = "\ufeff" + json.dumps({"text": "y" * 900}).ljust(1020) + "\n\r\n"  # just the cap
    long = [json.dumps({"text": "x" * n}) + "\n" for n in (1014, 2037, 2038, 5000)]
    write("a.jsonl", fits + "".join(long) + "{\n" + GOOD)
    assert str(refuse(jsonl("a.jsonl"))).startswith("a.jsonl:3: longer than")
    assert len(read(jsonl("a.jsonl", on_bad_line="skip"))) == 1
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("data: jsonl: skipped 5 of 7 rows; the first: a.jsonl:3: longer than")
    write("a.jsonl", "\n{\n{\n")
    error = refuse(jsonl("a.jsonl", on_bad_line="skip"))
    assert str(error).startswith("a.jsonl: no usable row of 2; a.jsonl:2: not JSON (EOF while parsing an object")
    assert error.hint == "mend the row or leave it out"


# --- damage, and what is of another kind

BAD: list[tuple[str, bytes, str, str]] = [  # name, content, error and a part of the hint
    ("a.txt", b"\xef\xbb\xbfab\n\xff", ":2: not text in UTF-8", "as UTF-8"),
    ("a.txt", b"one\r\n\0two", ":2: NUL bytes, not text in UTF-8", ""),
    ("a.txt", b"a\n" * 50_000 + b"\xff", ":50001: not text in UTF-8", ""),
    ("a.txt", b"a" * (SECTION - 1) + b"\xc3(", ":1: not text in UTF-8", ""),  # the bad sequence spans two blocks
    ("a.txt", b"\xef\xbb\xbf \n\t\n", ": no text", "data.files"),
    ("a.txt", b"PAR1\x15\x04", ": Parquet, not text", "data=hf data.repo=a.parquet data.column="),
    ("a.txt", "hi\n".encode("utf-16"), ": UTF-16, not text", "iconv -f UTF-16 -t UTF-8"),
    ("a.txt", b"%PDF-1.7\n", ": PDF, not text", "pdftotext"),
    ("a.txt", b"PK\x03\x04", ": a zip archive", "unpack it"),
    ("a.jsonl", b"ARROW1\0\0", ": Arrow, not text", "data=hf data.repo=a.arrow data.column="),
    ("a.jsonl", b"\xfe\xff\0h", ": UTF-16, not text", "iconv -f UTF-16 -t UTF-8"),
    ("a.jsonl", b"", ": no rows", "a row looks like"),
    ("a.jsonl", f"{GOOD}\n\n[1]\n".encode(), ":3: not an object with keys", "on_bad_line=skip"),
    ("a.jsonl", b'{"text": "\xff"}', r":1: not JSON \(invalid unicode code point at byte 11\)", "mend the row"),
    (
        "a.json",
        b'\xef\xbb\xbf \r\n{\r\n "data": [\n{"text": "a"}]}',
        ": a JSON object over several lines",
        "jq -c",
    ),
    ("a.jsonl", b'{"text": "\\ud800"}', r":1: not JSON \(unexpected end of hex escape at byte 17\)", ""),
    ("a.jsonl", b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ":1: not JSON", ""),
    ("a.json", b"[ ]", ": no rows", "a row looks like"),
    *(
        ("a.json", f"[{GOOD}{end}".encode(), r": row 2: not JSON \(", "jq -c")
        for end in ("", ",", ",]", f" {GOOD}]")
    ),
    ("a.json", f"[{GOOD}]\n[{GOOD}]".encode(), r": row 2: not JSON \(", "jq -c '.[]' a.json"),
    ("a.json", b"[" * 100_000, r": row 1: not JSON \(", "jq -c"),
    ("a.csv", b'text\none\n"two\n' + b"x" * 50, ": cannot be read after row 1", "again"),
    ("a.csv", b"text,n\none,1\ntwo\n", ": row 2: more or fewer cells", "on_bad_line=skip"),
    ("a.csv", b"text\none\n\xff\n", r": cannot be read \(", "again"),
    ("a.csv", b"title;body\na;b, c\n", r": cannot be read \(its separator is not a comma", "by commas"),
]


def test_a_bad_file_is_refused_with_its_name_its_place_and_the_way_out_even_compressed() -> None:
    for name, content, reason, way_out in BAD:
        cfg = {".txt": text(name), ".csv": hf(name), ".json": jsonl(name, on_bad_line="skip")}
        for held in (content, gzip.compress(content)):
            write(name, held)
            error = refuse(cfg.get(Path(name).suffix, jsonl(name)))
            assert re.match(re.escape(name) + reason, str(error)) and way_out in error.hint, content[:99]


def test_damaged_parquet_and_arrow_name_the_file_and_the_place_wherever_they_are_damaged() -> None:
    whole = write_rows("a.parquet", TEXTS)
    for at in (0, 10, 200, len(whole) // 2, len(whole) - 20, len(whole) - 4):
        for damaged in (whole[:at] + b"\xff" * 60 + whole[at + 60 :], whole[:at]):
            write("a.parquet", damaged)
            assert re.search(r"a\.parquet: (cannot be read(?! after row 0)|row \d)", str(refuse(hf("a.parquet"))))
    whole = write_rows("a.arrow", TEXTS)
    for at in range(0, len(whole), 97):
        write("a.arrow", whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read(hf("a.arrow"))  # and nothing that is outside its memory
        except DataError as error:
            assert re.search(r"a\.arrow: (cannot be read(?! after row 0)|row \d)", str(error))


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_damage_of_a_compressed_file_is_refused_by_name_and_place(compress: Callable[[bytes], bytes]) -> None:
    packed = compress("".join(json.dumps({"text": f"{n} {n**7}"}) + "\n" for n in range(5_000)).encode())
    flipped = packed[:-7] + bytes([packed[-7] ^ 255]) + packed[-6:]  # in gzip's checksum, or zstd's last block
    for damaged in (packed[:-7], packed[: len(packed) // 2], packed[:11], flipped):
        write("rows.x", damaged)
        for cfg in (text("rows.x"), jsonl("rows.x")):
            place = re.match(r"rows\.x: damaged near byte (\d+) of (\d+) \(", str(refuse(cfg)))
            assert place and int(place[1]) <= int(place[2]) == len(damaged)


def test_zstd_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    write("a.zst", ZSTD + b"rest")
    with pytest.raises(ConfigError, match=r"^a\.zst: compressed with zstd, for which a package") as caught:
        read(jsonl("a.zst"))
    assert caught.value.hint == "pip install 'niels_gpt[zst]'"


def test_a_bomb_takes_the_memory_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE", 1 << 20)
    size = 1 << 24  # of one line or element; some ten kilobytes of file
    write("rows.jsonl", compress_zstd(b"[" * size))
    write("lines.jsonl", gzip.compress(b"{" * size))
    write("a.txt", gzip.compress(b"a" * size + b"\0"))
    tracemalloc.start()
    try:
        assert str(refuse(jsonl("rows.jsonl"))).startswith("rows.jsonl: row 1: not JSON (")
        assert str(refuse(jsonl("lines.jsonl"))) == "lines.jsonl:1: longer than 1 MB"
        assert str(refuse(text("a.txt"))) == "a.txt:1: NUL bytes, not text in UTF-8"
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_row_group_is_not_held_in_memory_at_once() -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": [os.urandom(1000).hex() for _ in range(20_000)]})
    parquet.write_table(table, "big.parquet", row_group_size=20_000, use_dictionary=False)
    del table
    before, most = pa.default_memory_pool().bytes_allocated(), 0
    tracemalloc.start()  # for what is read, beside the pool for what is decoded
    for _ in tables.read_rows(Path("big.parquet")):
        most = max(most, pa.default_memory_pool().bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most + peak < 16 << 20 < Path("big.parquet").stat().st_size
