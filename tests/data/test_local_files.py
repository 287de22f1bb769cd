"""Reading the user's files: strict text, whole rows, and errors that name the place."""

import codecs
import errno
import gzip
import json
import logging
import os
import re
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import json_rows, local_files
from niels_gpt.data.readers.decompress import GZIP, NOT_TEXT, ZSTD
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, Message
from niels_gpt.data.readers.row_shapes import log_once
from niels_gpt.errors import ConfigError, DataError

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD = json.dumps(CHAT)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    log_once.cache_clear()
    caplog.set_level(logging.INFO, "niels_gpt")


def text(*names: str, **settings: Any) -> SourceCfg:
    return SourceCfg(kind="text", files=names, **settings)


def jsonl(*names: str, **settings: Any) -> SourceCfg:
    return SourceCfg(kind="jsonl", files=names, **settings)


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(cfg: SourceCfg) -> list[str]:
    return [document.text for document in local_files.read_documents(cfg)]


def refuse(cfg: SourceCfg) -> DataError:
    """Return the one error that documents and dialogues agree on."""
    with pytest.raises(DataError) as caught:
        list(local_files.read_documents(cfg))
    if cfg.kind == "jsonl":
        with pytest.raises(DataError) as other:
            list(local_files.read_dialogues(cfg))
        assert str(other.value) == str(caught.value)
    return caught.value


# --- which files


def test_files_are_read_in_sorted_order_each_once_by_globs_from_home_or_by_a_name_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.md", "a[1].txt", "a1.txt"):
        write(name, name)
    os.symlink("a.txt", "z.txt")
    assert read(text("**/*.txt", "b.txt", "./a.txt")) == ["a.txt", "a1.txt", "a[1].txt", "b.txt", "deep/er/c.txt"]
    assert read(text("deep/**")) == ["deep/d.md", "deep/er/c.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(text("~/a[1].txt")) == ["a[1].txt"]


@pytest.mark.parametrize("pattern", ["no.txt", "no/**", "", "nul\0"])
def test_a_pattern_that_matches_nothing_says_where_it_looked(pattern: str, tmp_path: Path) -> None:
    write("a.txt", "a")
    error = refuse(text("a.txt", pattern))
    assert str(error) == f"data.files: no file matches {pattern!r}"
    assert str(tmp_path) in error.hint


def test_a_folder_stands_for_its_files_of_the_kind_without_hidden_ones_and_they_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("n/b.txt", "n/in/c.MD", "n/.hidden.txt", "n/.git/d.md", "n/e.png", "n/f.txt.gz.part", "n/h.rst"):
        write(name, name)
    for name in ("n/a.json", "n/in/b.ndjson"):
        write(name, GOOD)
    write("n/empty.md", "")
    write("n/g.md.gz", gzip.compress(b"packed"))
    write("n/c.jsonl.gz", gzip.compress(GOOD.encode()))
    assert read(text("n")) == ["n/b.txt", "packed", "n/h.rst", "n/in/c.MD"]
    assert len(list(local_files.read_dialogues(jsonl("n/")))) == 3
    assert [record.message for record in caplog.records] == [
        "data: text: 5 files, documents: 4",
        "data: jsonl: 3 files, rows: 3 messages",
    ]
    os.mkdir("n/none")
    error = refuse(text("n/none"))
    assert str(error).startswith("data.files: the folder n/none has no .txt, ") and "'n/none/**'" in error.hint


def test_a_folder_that_cannot_be_listed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    write("n/closed/a.txt", "a")
    scandir = os.scandir

    def refuse_closed(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    assert str(refuse(text("n"))) == "n/closed: cannot be read (Permission denied)"


# --- compressed, and other kinds of file


def compress_zstd(content: bytes) -> bytes:
    if not find_spec("compression") and not (find_spec("backports") and find_spec("backports.zstd")):
        pytest.skip("needs the extra zst")
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    compressed: bytes = zstd.compress(content)
    return compressed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": compress_zstd}
STORIES = ["one\n\n  two é", "  indented\nthree", "four"]


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_the_same_documents_give_equal_records_whatever_holds_them(compress: Callable[[bytes], bytes]) -> None:
    write("a.txt", "\n<|endoftext|>\n".join(STORIES) + "<|endoftext|>")
    write("a.jsonl", "\n".join(json.dumps({"text": story}) for story in STORIES))
    write("a.json", json.dumps([{"text": story} for story in STORIES], indent=1))
    for name in ("a.txt", "a.jsonl", "a.json"):
        write(f"packed/{name}", compress(Path(name).read_bytes()))
        half = len(Path(name).read_bytes()) // 2
        write(
            f"twice/{name}",
            b"".join(map(compress, (Path(name).read_bytes()[:half], Path(name).read_bytes()[half:]))),
        )
    expected = list(local_files.read_documents(jsonl("a.jsonl")))
    assert [document.text for document in expected] == STORIES
    for folder in ("", "packed/", "twice/"):
        assert list(local_files.read_documents(text(f"{folder}a.txt", separator="<|endoftext|>"))) == expected
        assert list(local_files.read_documents(jsonl(f"{folder}a.jsonl"))) == expected
        assert list(local_files.read_documents(jsonl(f"{folder}a.json"))) == expected


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
@pytest.mark.parametrize("read_kind", [text, jsonl])
def test_damage_is_refused_by_name_and_place(
    compress: Callable[[bytes], bytes], read_kind: Callable[..., SourceCfg]
) -> None:
    rows = "".join(json.dumps({"text": f"row {number} {number**7}"}) + "\n" for number in range(5_000))
    packed = compress(rows.encode())
    content = bytearray(packed)
    content[-7] ^= 255  # in the checksum of gzip, or in the last block of zstd
    for damaged in (packed[:-7], packed[: len(packed) // 2], packed[:11], bytes(content)):
        write("rows.x", damaged)
        error = refuse(read_kind("rows.x"))
        place = re.match(r"rows\.x: damaged near byte (\d+) of (\d+) \(", str(error))
        assert place and int(place[1]) <= int(place[2]) == len(damaged) and "again" in error.hint


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_bomb_takes_the_memory_of_a_row(
    compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE", 1 << 20)
    size = 1 << 24  # of one line or element; some ten kilobytes of file
    write("rows.jsonl", compress(b"[" * size))
    write("lines.jsonl", compress(b"{" * size))
    write("a.txt", compress(b"a" * size + b"\0"))
    tracemalloc.start()
    try:
        assert str(refuse(jsonl("rows.jsonl"))).startswith("rows.jsonl: row 1: not JSON (")
        assert str(refuse(jsonl("lines.jsonl"))) == "lines.jsonl:1: longer than 1 MB"
        with pytest.raises(DataError, match="^a.txt:1: not text in UTF-8"):
            deque(local_files.read_documents(text("a.txt")), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


WRONG = {
    b"PAR1\x15\x04": ("Parquet", "data=hf data.repo="),
    b"ARROW1\0\0": ("Arrow", "data=hf data.repo="),
    "hi\n".encode("utf-16"): ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff\0h": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"%PDF-1.7\n": ("PDF", "pdftotext"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"\xfd7zXZ\0": ("xz", "gzip"),
}


@pytest.mark.parametrize("content", WRONG)
def test_another_kind_of_file_is_recognised_by_its_first_bytes_even_when_compressed(content: bytes) -> None:
    kind, way_out = WRONG[content]
    for held in (content, gzip.compress(content)):
        write("a.txt", held)
        for cfg in (text("a.txt"), jsonl("a.txt", on_bad_line="skip")):
            error = refuse(cfg)
            assert str(error).startswith(f"a.txt: {kind}") and way_out in error.hint


def test_zstd_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    write("a.jsonl.zst", ZSTD[0] + b"rest")
    with pytest.raises(
        ConfigError, match=r"^a\.jsonl\.zst: compressed with zstd, for which a package is missing"
    ) as caught:
        list(local_files.read_dialogues(jsonl("a.jsonl.zst")))
    assert caught.value.hint == "pip install 'niels_gpt[zst]'"


# --- plain text


def test_a_file_is_a_document_without_bom_and_with_plain_line_ends() -> None:
    write("a.txt", b"\xef\xbb\xbfone\r\n\r\n  two \xc3\xa9\r\n")
    assert list(local_files.read_documents(text("a.txt"))) == [Document("", "one\n\n  two é\n")]


def test_paragraphs_stand_between_blank_lines() -> None:
    write("a.txt", "\n\n  one\nmore\n\n \t\n\ntwo\n\n\n")
    write("b.txt", "two")
    assert read(text("*.txt", documents="blank_lines")) == ["  one\nmore", "two", "two"]


@pytest.mark.parametrize("end", ["\n\n", "\n", " "], ids=["blank line", "line end", "anywhere"])
def test_a_long_file_is_cut_at_the_best_place_and_nothing_is_lost(end: str) -> None:
    whole = "".join(f"line {i} é{end}" for i in range(10_000))
    write("a.txt", whole)
    pieces = list(local_files.read_documents(text("a.txt")))
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == whole
    assert all(SECTION <= len(piece.text) < 4 * SECTION for piece in pieces[:-1])
    if "\n" in end:
        assert all(piece.text.endswith(end) for piece in pieces)


@pytest.mark.parametrize("mark", ["<|endoftext|>", "</s>", "\n---\n", "x"])
def test_separators_cut_documents_wherever_they_stand_and_are_removed(mark: str) -> None:
    size = SECTION
    stories = [
        "",
        "one",
        "  two\n\n\nlines",
        "é" * (3 * size),
        *("y" * (size - n) for n in range(20)),
        "end",
        " \n",
    ]
    write("a.txt", mark.join(stories))
    assert read(text("a.txt", separator=mark)) == [story for story in stories if story.strip()]


def test_text_full_of_marks_is_warned_of_once_and_so_is_a_separator_that_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warnings = [
        "text: <|endoftext|> is in the text 20 times, as words; "
        """'data.separator="<|endoftext|>"' cuts the documents there""",
        "text: data.separator='<|end|>' is nowhere in the text",
    ]
    write("a.txt", "a<|endoftext|>" * 12)
    write("b.txt", "a<|endoftext|>" * 8 + "</s>" * 19)
    for cfg in (text("b.txt"), text("?.txt"), text("?.txt"), text("?.txt", separator="<|end|>")):
        read(cfg)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == warnings
    read(text("?.txt", separator="<|endoftext|>"))
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xef\xbb\xbfab\n\xff", 2),
        (b"one\n\0two", 2),
        (b"a\n" * 50_000 + b"\xff", 50001),
        # The bad sequence starts in one block and ends in the next.
        (b"a" * (SECTION - 1) + b"\xc3(", 1),
    ],
)
@pytest.mark.parametrize("cut", ["file", "blank_lines"])
def test_what_is_not_text_is_refused_with_its_line(content: bytes, line: int, cut: str) -> None:
    write("notes.txt", content)
    error = refuse(text("notes.txt", documents=cut))
    assert str(error) == f"notes.txt:{line}: not text in UTF-8"
    assert "UTF-8" in error.hint


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_a_file_without_text_or_rows_is_refused(content: str) -> None:
    write("a", content)
    for cfg in (text("a"), text("a", documents="blank_lines"), jsonl("a")):
        assert str(refuse(cfg)) == f"a: no {'rows' if cfg.kind == 'jsonl' else 'text'}"


# --- rows of JSON


def test_each_kind_of_row_becomes_what_it_says() -> None:
    system = {"messages": [{"role": "system", "content": "be kind"}, *CHAT["messages"]]}
    rows: list[dict[str, Any]] = [CHAT, system, {"prompt": "2+2?", "completion": "4"}, {"text": "a text"}]
    write("a.jsonl", "\ufeff" + "\r\n\r\n".join(json.dumps(row | {"id": 7}) for row in rows))
    hi, hello = Message("user", "hi"), Message("assistant", "hello")
    assert [dialogue.messages for dialogue in local_files.read_dialogues(jsonl("a.jsonl"))] == [
        (hi, hello),
        (Message("system", "be kind"), hi, hello),
        (Message("user", "2+2?"), Message("assistant", "4")),
    ]
    assert read(jsonl("a.jsonl")) == ["a text"]


def test_the_same_question_has_the_same_name_whatever_the_answer() -> None:
    rows = [{"prompt": "2+2?", "completion": c} for c in ("4", "four")] + [{"prompt": "3+3?", "completion": "6"}]
    write("a.jsonl", "\n".join(map(json.dumps, rows)))
    first, second, third = (dialogue.name for dialogue in local_files.read_dialogues(jsonl("a.jsonl")))
    assert first == second != third


def message(role: str, content: str | None) -> str:
    return json.dumps({"messages": [*CHAT["messages"], {"role": role, "content": content}]})


BAD = {
    '{"prompt": "a", "id": 1, "completion": null}': "no known shape; its keys are prompt, id",
    "[1]": "not an object with keys",
    "{}": "has no keys with values",
    '{"messages": ["a"]}': "a message that is not an object with keys",
    '{"prompt": "a", "completion": ""}': "completion is not a string with text",
    '{"text": " "}': "text is not a string with text",
    '{"text": "\\ud800"}': "not JSON (unexpected end of hex escape at byte 17)",
    '{"text": "a", "n": ' + "9" * 5000 + "}": "not JSON",
    '{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}": "not JSON (recursion limit exceeded",
    '{"messages": [{"role": "user", "content": "a"}]}': "no assistant message",
    message("tool", "a"): "dialogue with tools",
    message("pirate", "a"): "a message of role 'pirate', not system, user or assistant",
    message("system", "a"): "a system message that is not the first",
    message("user", None): "content is not a string with text",
}


def test_a_bad_line_is_refused_with_its_number() -> None:
    for line, why in BAD.items():
        write("a.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
        error = refuse(jsonl("a.jsonl"))
        assert str(error).startswith(f"a.jsonl:3: {why}")
        assert "on_bad_line=skip" in error.hint
        (looks,) = re.findall('a row looks like ({"messages": .*?]}),', error.hint)
        write("hint.jsonl", looks)
        assert list(local_files.read_dialogues(jsonl("hint.jsonl"))), "the hint is a row"
    write("a.jsonl", GOOD.encode() + b'\n{"text": "\xff"}')
    assert str(refuse(jsonl("a.jsonl"))) == "a.jsonl:2: not JSON (invalid unicode code point at byte 11)"


def test_skipped_lines_are_counted_and_the_first_is_named_even_one_over_the_cap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE", 1 << 10)
    fits = json.dumps({"text": "y" * 1000}).ljust((1 << 10) - 1) + "\n"  # just the cap
    long = [json.dumps({"text": "x" * n}) + "\n" for n in (1014, 2037, 2038, 5000)]
    write("a.jsonl", fits + "".join(long) + "{\n" + GOOD)
    assert str(refuse(jsonl("a.jsonl"))).startswith("a.jsonl:2: longer than")
    assert len(list(local_files.read_documents(jsonl("a.jsonl", on_bad_line="skip")))) == 1
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("jsonl: skipped 5 bad rows; the first is a.jsonl:2: longer than")
    write("a.jsonl", "\n{\n{\n")
    error = refuse(jsonl("a.jsonl", on_bad_line="skip"))
    assert str(error).startswith("a.jsonl: all 2 rows are bad; a.jsonl:2: not JSON (EOF while parsing an object")


@settings(deadline=None, max_examples=100)
@given(content=st.lists(st.binary(max_size=8) | st.text(max_size=8).map(str.encode), max_size=5).map(b"".join))
def test_hostile_text_is_read_exactly_or_refused_at_the_first_bad_line(content: bytes) -> None:
    write("hostile.txt", content)
    bad = [content.find(b"\0")] if b"\0" in content else []
    try:
        whole = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        bad.append(error.start + 3 * content.startswith(codecs.BOM_UTF8))
        whole = ""
    if content.startswith((GZIP, *ZSTD, *NOT_TEXT)):
        assert refuse(text("hostile.txt")).hint
    elif bad and not codecs.BOM_UTF8.startswith(content):
        line = 1 + len(re.findall(rb"\r\n?|\n", content[: min(bad)]))
        assert str(refuse(text("hostile.txt"))) == f"hostile.txt:{line}: not text in UTF-8"
    elif whole.strip():
        assert read(text("hostile.txt")) == [whole]
    else:
        assert str(refuse(text("hostile.txt"))) == "hostile.txt: no text"


def test_an_array_is_rows_whatever_its_layout_and_the_chunks_that_it_is_read_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"text": f'{number} é \\ "],[{{'} for number in range(50)]
    texts = [row["text"] for row in rows]
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr(json_rows, "READ_CHARS", chunk)
        for indent, start in ((None, ""), (2, "\ufeff"), (None, "\r\n ")):
            write("a.json", start + json.dumps(rows, indent=indent) + "\n")
            assert read(jsonl("a.json")) == texts
        write("a.json", f"[{GOOD}, [1], {GOOD}]")
        assert str(refuse(jsonl("a.json"))) == "a.json: row 2: not an object with keys"
        assert len(list(local_files.read_dialogues(jsonl("a.json", on_bad_line="skip")))) == 2
        write("a.json", "[ ]")
        assert str(refuse(jsonl("a.json"))) == "a.json: no rows"


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (f"[{GOOD}", 2),
        (f"[{GOOD},", 2),
        (f"[{GOOD},]", 2),
        (f"[{GOOD} {GOOD}]", 2),
        (f"[{GOOD}]\n[{GOOD}]", 2),
        (f"[{GOOD},{GOOD[:-1]}", 2),
        ("[" * 100_000, 1),
        (f'[{{"n": {"9" * 5000}}}]', 1),
    ],
)
def test_a_broken_array_is_refused_with_its_row_even_if_bad_rows_are_skipped(content: str, row: int) -> None:
    write("a.json", content)
    error = refuse(jsonl("a.json", on_bad_line="skip"))
    assert str(error).startswith(f"a.json: row {row}: not JSON (") and "jq -c '.[]' a.json" in error.hint


# --- fingerprint


def test_the_fingerprint_tells_files_and_the_settings_that_change_what_is_read_apart() -> None:
    write("a.txt", GOOD)
    cfgs = [
        text("*.txt"),
        text("*.txt", documents="blank_lines"),
        text("*.txt", separator="</s>"),
        jsonl("*.txt"),
        jsonl("*.txt", on_bad_line="skip"),
    ]
    seen = [local_files.fingerprint(cfg) for cfg in cfgs]
    assert local_files.fingerprint(text("a.txt", weight=2.0)) == seen[0]
    write("a.txt", "other")
    seen.append(local_files.fingerprint(cfgs[0]))
    os.rename("a.txt", "z.txt")
    assert local_files.fingerprint(cfgs[0]) == seen[-1], "a name is not content"
    write("c.txt", "new")
    seen.append(local_files.fingerprint(cfgs[0]))
    assert local_files.fingerprint(text("z.txt", "c.txt")) == seen[-1]
    assert len(set(seen)) == 7


def test_the_first_rows_of_each_file_tell_what_kinds_it_holds() -> None:
    """A corpus is not read as a whole to learn its kind: what comes later is not even parsed."""
    texts = "\n".join(json.dumps({"text": f"row {n}"}) for n in range(local_files.FIRST_ROWS))
    write("texts.jsonl", texts + "\nnot JSON\n" + GOOD)
    assert local_files.has_rows(jsonl("texts.jsonl"), Document)
    assert not local_files.has_rows(jsonl("texts.jsonl"), Dialogue)
    write("zchats.jsonl", GOOD)
    assert local_files.has_rows(jsonl("*.jsonl"), Dialogue), "a second file is looked at too"
