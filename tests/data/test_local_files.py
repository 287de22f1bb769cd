"""Reading the user's files: strict text, whole rows, and errors that name the place."""

import codecs
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.data.readers.records import Dialogue, Document, Message
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


def test_globs_are_read_in_sorted_order_each_real_file_once_and_no_folder() -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.md"):
        write(name, name)
    os.symlink("a.txt", "z.txt")
    assert read(text("**/*.txt", "b.txt", "./a.txt")) == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert read(text("deep/**")) == ["deep/d.md", "deep/er/c.txt"]


def test_a_tilde_is_the_home_folder_and_a_name_with_brackets_is_a_name_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/a[1].txt", "at home")
    write("home/a1.txt", "none")
    assert read(text("~/a[1].txt")) == ["at home"]


@pytest.mark.parametrize("pattern", ["no.txt", "*.no", "no/**", "", "nul\0"])
def test_a_pattern_that_matches_nothing_says_where_it_looked(pattern: str, tmp_path: Path) -> None:
    write("a.txt", "a")
    error = refuse(text("a.txt", pattern))
    assert str(error) == f"data.files: no file matches {pattern!r}"
    assert str(tmp_path) in error.hint


def test_a_folder_a_fifo_a_device_and_a_dangling_link_are_refused_without_waiting() -> None:
    os.mkdir("folder")
    os.mkfifo("fifo")
    for name in ("folder", "fifo", "/dev/null"):
        for cfg in (text(name), jsonl(name)):
            assert str(refuse(cfg)) == f"{name}: not a regular file"
            with pytest.raises(DataError, match="not a regular file"):
                local_files.fingerprint(cfg)
    os.symlink("gone.txt", "link.txt")
    assert str(refuse(text("*.txt"))) == "link.txt: cannot be read (No such file or directory)"


# --- plain text


def test_a_file_is_a_document_without_bom_and_with_plain_line_ends() -> None:
    write("a.txt", b"\xef\xbb\xbfone\r\n\r\n  two \xc3\xa9\r\n")
    assert list(local_files.read_documents(text("a.txt"))) == [Document("a.txt", "one\n\n  two é\n")]


def test_paragraphs_stand_between_blank_lines_and_a_repeated_one_keeps_its_name() -> None:
    write("a.txt", "\n\n  one\nmore\n\n \t\n\ntwo\n\n\n")
    write("b.txt", "two")
    documents = list(local_files.read_documents(text("*.txt", documents="blank_lines")))
    assert [document.text for document in documents] == ["  one\nmore", "two", "two"]
    first, second, third = (document.name for document in documents)
    assert first != second == third


@pytest.mark.parametrize("end", ["\n\n", "\n", " "], ids=["blank line", "line end", "anywhere"])
def test_a_long_file_is_cut_at_the_best_place_and_nothing_is_lost(end: str) -> None:
    whole = "".join(f"line {i} é{end}" for i in range(10_000))
    write("a.txt", whole)
    pieces = list(local_files.read_documents(text("a.txt")))
    assert [piece.name for piece in pieces] == ["a.txt", *(f"a.txt#{n}" for n in range(2, len(pieces) + 1))]
    assert "".join(piece.text for piece in pieces) == whole
    assert all(local_files.READ_CHARS <= len(piece.text) < 4 * local_files.READ_CHARS for piece in pieces[:-1])
    if "\n" in end:
        assert all(piece.text.endswith(end) for piece in pieces)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"one\ntwo\nthr\xe9e\n", 3),
        ("one\n".encode("utf-16"), 1),
        (b"\xef\xbb\xbfab\xff", 1),
        (b"surrogate \xed\xa0\x80", 1),
        (b"one\n\0two", 2),
        (b"a\n" * 50_000 + b"\xff", 50001),
        # The bad sequence starts in one block and ends in the next.
        (b"a" * (local_files.READ_CHARS - 1) + b"\xc3(", 1),
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
    for cfg in (text("a"), text("a", documents="blank_lines")):
        assert str(refuse(cfg)) == "a: has no text"
    write("a", content.replace("\t", ""))
    assert str(refuse(jsonl("a"))) == "a: has no rows"


def test_a_file_name_that_is_not_utf8_can_still_be_written_down() -> None:
    try:
        Path(os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (document,) = local_files.read_documents(text("*.txt"))
    assert document.name.encode() == b"caf\\xe9.txt"


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


def message(role: object, content: object) -> str:
    return json.dumps({"messages": [*CHAT["messages"], {"role": role, "content": content}]})


NO_ROW = "no list of messages, no prompt and completion, no text"
NO_ROLE = "a message without a role of system, user or assistant, or without content"
BAD = {
    "{": "not JSON",
    "[1]": NO_ROW,
    '{"a": 1}': NO_ROW,
    '{"prompt": "a"}': NO_ROW,
    '{"prompt": "a", "completion": ""}': "completion is not a string with text",
    '{"text": " "}': "text is not a string with text",
    '{"text": 1}': "text is not a string with text",
    '{"text": "\\ud800"}': "not JSON (unexpected end of hex escape at byte 17)",
    '{"text": "a", "n": ' + "9" * 5000 + "}": "not JSON",
    '{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}": "not JSON (recursion limit exceeded",
    '{"messages": {}}': NO_ROW,
    '{"messages": []}': "no assistant message",
    '{"messages": ["a"]}': NO_ROLE,
    '{"messages": [{"role": "user", "content": "a"}]}': "no assistant message",
    message("tool", "a"): NO_ROLE,
    message([], "a"): NO_ROLE,
    json.dumps({"messages": [{"role": "system", "content": "a"}] * 2 + CHAT["messages"]}): (
        "a system message that is not the first"
    ),
    message("system", "a"): "a system message that is not the first",
    message("user", None): "content is not a string with text",
    message("user", "\n"): "content is not a string with text",
    message("user", "\ud800"): "not JSON",
}


def test_a_bad_line_is_refused_with_its_number() -> None:
    for line, why in BAD.items():
        write("a.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
        error = refuse(jsonl("a.jsonl"))
        assert str(error).startswith(f"a.jsonl:3: {why}")
        assert "on_bad_line=skip" in error.hint
    write("a.jsonl", GOOD.encode() + b'\n{"text": "\xff"}')
    assert str(refuse(jsonl("a.jsonl"))) == "a.jsonl:2: not JSON (invalid unicode code point at byte 11)"


def test_a_line_over_the_cap_is_refused_and_the_ones_after_it_keep_their_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_files, "MAX_LINE", 1 << 10)
    fits = json.dumps({"text": "y" * 1000}).ljust((1 << 10) - 1) + "\n"  # just the cap
    long = [json.dumps({"text": "x" * n}) + "\n" for n in (1014, 2037, 2038, 5000)]
    write("a.jsonl", fits + "".join(long) + "{\n" + GOOD)
    assert str(refuse(jsonl("a.jsonl"))).startswith("a.jsonl:2: longer than")
    assert len(list(local_files.read_documents(jsonl("a.jsonl", on_bad_line="skip")))) == 1
    assert "skipped 5 bad lines; the first is a.jsonl:2: longer than" in caplog.text


def test_skipped_lines_are_counted_and_the_first_is_told(caplog: pytest.LogCaptureFixture) -> None:
    write("a.jsonl", "\n".join([GOOD, "", *["{"] * 7, '{"text": ""}', GOOD]))
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        assert len(list(local_files.read_dialogues(jsonl("a.jsonl", on_bad_line="skip")))) == 2
    assert [record.message for record in caplog.records] == [
        "a.jsonl: skipped 8 bad lines; the first is a.jsonl:3: not JSON (EOF while parsing an object at byte 1)"
    ]
    write("a.jsonl", "{\n{\n")
    error = refuse(jsonl("a.jsonl", on_bad_line="skip"))
    assert str(error).startswith("a.jsonl: all 2 lines are bad; a.jsonl:1: not JSON (")


LINES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [line.encode("utf-8", "surrogatepass") for line in (GOOD, '{"text": "a"}', *BAD) if len(line) < 999]
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "text", "prompt", "completion"]), inner
            )
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(deadline=None, max_examples=100)
@given(lines=st.lists(LINES, max_size=4), end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_hostile_json_lines_give_rows_or_an_error_that_names_the_place(lines: list[bytes], end: bytes) -> None:
    write("hostile.jsonl", end.join(lines))
    for on_bad_line in ("error", "skip"):
        for rows in (local_files.read_documents, local_files.read_dialogues):
            try:
                found: list[Document | Dialogue] = list(rows(jsonl("hostile.jsonl", on_bad_line=on_bad_line)))
            except DataError as error:
                place = r"hostile\.jsonl:(\d+: | all \d+ lines are bad; hostile\.jsonl:\d+: | has no rows)"
                assert re.match(place, str(error))
            else:
                assert all(isinstance(row, Document | Dialogue) and row.name for row in found)


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


def test_the_fingerprint_tells_files_apart() -> None:
    write("a.txt", "a")
    write("b.txt", "b")
    seen = [local_files.fingerprint(text("*.txt"))]
    assert local_files.fingerprint(text("b.txt", "a.txt")) == seen[0]
    write("a.txt", "other")
    seen.append(local_files.fingerprint(text("*.txt")))
    os.rename("a.txt", "aa.txt")
    seen.append(local_files.fingerprint(text("*.txt")))
    write("c.txt", "new")
    seen.append(local_files.fingerprint(text("*.txt")))
    assert len(set(seen)) == 4


def test_the_fingerprint_depends_on_the_settings_that_change_what_is_read() -> None:
    write("a", GOOD)
    cfgs = [text("a"), text("a", documents="blank_lines"), jsonl("a"), jsonl("a", on_bad_line="skip")]
    assert len({local_files.fingerprint(cfg) for cfg in cfgs}) == 4
    assert local_files.fingerprint(text("a", weight=2.0)) == local_files.fingerprint(text("a"))


def test_the_first_rows_of_each_file_tell_what_kinds_it_holds() -> None:
    """A corpus is not read as a whole to learn its kind: what comes later is not even parsed."""
    texts = "\n".join(json.dumps({"text": f"row {n}"}) for n in range(local_files.FIRST_ROWS))
    write("texts.jsonl", texts + "\nnot JSON\n" + GOOD)
    assert local_files.has_rows(jsonl("texts.jsonl"), Document)
    assert not local_files.has_rows(jsonl("texts.jsonl"), Dialogue)
    write("zchats.jsonl", GOOD)
    assert local_files.has_rows(jsonl("*.jsonl"), Dialogue), "a second file is looked at too"
