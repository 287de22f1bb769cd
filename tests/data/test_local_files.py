"""Reading the user's files: strict text, whole rows, and errors that name the place."""

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, Message
from niels_gpt.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD = json.dumps(CHAT)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
        assert str(refuse(cfg)) == f"a: has no {'rows' if cfg.kind == 'jsonl' else 'text'}"


# --- JSON lines


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
    '{"prompt": "a"}': "no list of messages, no prompt and completion, no text",
    "[1]": "no list of messages, no prompt and completion, no text",
    '{"messages": ["a"]}': "a message without a role of system, user or assistant, or without content",
    '{"prompt": "a", "completion": ""}': "completion is not a string with text",
    '{"text": " "}': "text is not a string with text",
    '{"text": "\\ud800"}': "not JSON (unexpected end of hex escape at byte 17)",
    '{"text": "a", "n": ' + "9" * 5000 + "}": "not JSON",
    '{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}": "not JSON (recursion limit exceeded",
    '{"messages": [{"role": "user", "content": "a"}]}': "no assistant message",
    message("tool", "a"): "a message without a role of system, user or assistant, or without content",
    message("system", "a"): "a system message that is not the first",
    message("user", None): "content is not a string with text",
}


def test_a_bad_line_is_refused_with_its_number() -> None:
    for line, why in BAD.items():
        write("a.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
        error = refuse(jsonl("a.jsonl"))
        assert str(error).startswith(f"a.jsonl:3: {why}")
        assert "on_bad_line=skip" in error.hint
    write("a.jsonl", GOOD.encode() + b'\n{"text": "\xff"}')
    assert str(refuse(jsonl("a.jsonl"))) == "a.jsonl:2: not JSON (invalid unicode code point at byte 11)"


def test_skipped_lines_are_counted_and_the_first_is_named_even_one_over_the_cap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_files, "MAX_LINE", 1 << 10)
    fits = json.dumps({"text": "y" * 1000}).ljust((1 << 10) - 1) + "\n"  # just the cap
    long = [json.dumps({"text": "x" * n}) + "\n" for n in (1014, 2037, 2038, 5000)]
    write("a.jsonl", fits + "".join(long) + "{\n" + GOOD)
    assert str(refuse(jsonl("a.jsonl"))).startswith("a.jsonl:2: longer than")
    assert len(list(local_files.read_documents(jsonl("a.jsonl", on_bad_line="skip")))) == 1
    (record,) = caplog.records
    assert record.message.startswith("a.jsonl: skipped 5 bad lines; the first is a.jsonl:2: longer than")
    write("a.jsonl", "\n{\n{\n")
    error = refuse(jsonl("a.jsonl", on_bad_line="skip"))
    assert str(error).startswith("a.jsonl: all 2 lines are bad; a.jsonl:2: not JSON (EOF while parsing an object")


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
    if bad and not codecs.BOM_UTF8.startswith(content):
        line = 1 + len(re.findall(rb"\r\n?|\n", content[: min(bad)]))
        assert str(refuse(text("hostile.txt"))) == f"hostile.txt:{line}: not text in UTF-8"
    elif whole.strip():
        assert read(text("hostile.txt")) == [whole]
    else:
        assert str(refuse(text("hostile.txt"))) == "hostile.txt: has no text"


# --- fingerprint


def test_the_fingerprint_tells_files_and_the_settings_that_change_what_is_read_apart() -> None:
    write("a.txt", GOOD)
    cfgs = [
        text("*.txt"),
        text("*.txt", documents="blank_lines"),
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
    assert len(set(seen)) == 6


def test_the_first_rows_of_each_file_tell_what_kinds_it_holds() -> None:
    """A corpus is not read as a whole to learn its kind: what comes later is not even parsed."""
    texts = "\n".join(json.dumps({"text": f"row {n}"}) for n in range(local_files.FIRST_ROWS))
    write("texts.jsonl", texts + "\nnot JSON\n" + GOOD)
    assert local_files.has_rows(jsonl("texts.jsonl"), Document)
    assert not local_files.has_rows(jsonl("texts.jsonl"), Dialogue)
    write("zchats.jsonl", GOOD)
    assert local_files.has_rows(jsonl("*.jsonl"), Dialogue), "a second file is looked at too"
