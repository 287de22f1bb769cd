"""Rows of any known shape become the same dialogue; what cannot be learned from is refused, counted and said."""

import json
import logging
from typing import Any

import pytest

from niels_gpt.data.chat_template import ChatTokens, Learn, encode_dialogue
from niels_gpt.data.readers.records import Dialogue, Document, Message
from niels_gpt.data.readers.row_shapes import MAX_KEYS, ROW_HINT, RowParser, log_once, parse_row
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import END_OF_TURN, BytesTokenizer

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
DIALOGUE = (Message("user", "hi"), Message("assistant", "yo"))
SYSTEM = Message("system", "be kind")
SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ASSISTANT]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    "prompt/completion": {"prompt": "hi", "completion": "yo"},
    "Alpaca": {"instruction": "hi", "input": "", "output": "yo"},
    "Dolly": {"instruction": "hi", "context": "", "response": "yo", "category": "x"},
    "question/answer": {"question": "hi", "answer": "yo"},
}


@pytest.fixture(autouse=True)
def _log_again(caplog: pytest.LogCaptureFixture) -> None:
    log_once.cache_clear()
    caplog.set_level(logging.INFO, "niels_gpt")


def parse(row: dict[str, Any]) -> tuple[Message, ...]:
    record = parse_row(row)[1]
    assert isinstance(record, Dialogue)
    return record.messages


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_dialogue_in_any_shape_is_the_same_record(shape: str) -> None:
    row = SHAPES[shape]
    assert parse_row(row)[:2] == (shape, parse_row(SHAPES["messages"])[1])
    assert parse(row | {"system": "be kind"}) == (SYSTEM, *DIALOGUE)
    absent = {"text": None, "system": None, "messages": None}
    assert parse(absent | row) == DIALOGUE, "tables give every row all columns, those of others empty"


def test_text_is_a_document_and_what_comes_with_a_question_follows_it() -> None:
    assert parse_row({"text": " a text\n", "id": 3})[1] == Document("", " a text\n")
    for about, answer in (("input", "output"), ("context", "response")):
        row = {"instruction": "Add.", about: "2 and 2", answer: "4"}
        assert parse(row) == (Message("user", "Add.\n\n2 and 2"), Message("assistant", "4"))


def test_the_same_question_has_the_same_name_whatever_the_answer() -> None:
    rows = [{"prompt": "2+2?", "completion": c} for c in ("4", "four")] + [{"prompt": "3+3?", "completion": "6"}]
    first, second, third = (record.name for row in rows if (record := parse_row(row)[1]))
    assert first == second != third


def test_system_messages_come_from_developers_keys_and_parts_and_empty_ones_are_none() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind", "image": None}]
    for role, content in (("system", "be kind"), ("developer", "be kind"), ("system", parts)):
        assert parse({"messages": [{"role": role, "content": content}, USER, ASSISTANT]}) == (SYSTEM, *DIALOGUE)
    assert parse({"messages": [{"role": "system", "content": " "}, USER, ASSISTANT], "system": ""}) == DIALOGUE
    assert parse({"messages": [USER, ASSISTANT | {"tool_calls": [], "function_call": None}]}) == DIALOGUE


TOOLS: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "add"}}]},
    {"role": "tool", "content": "4"},
    {"from": "observation", "value": "4"},
    {"role": "user", "content": [{"type": "tool_result", "content": "4"}]},
]
BAD: list[tuple[Any, str]] = [
    ([], "not an object with keys"),
    ({"text": None}, "has no keys with values"),
    ({"prompt": "a", "chosen": "b", "completion": None}, "no known shape; its keys are prompt, chosen"),
    ({"messages": "[]"}, "no known shape; its keys are messages"),
    ({"messages": [USER]}, "no assistant message"),
    ({"messages": [USER, "yo"]}, "a message that is not an object with keys"),
    ({"messages": [USER, {"role": ["user"], "content": "a"}]}, "a message of role ['user'], not system, user"),
    ({"messages": [USER, {"content": "a"}]}, "a message of role None, not system, user"),
    ({"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "content has a part that is not text"),
    ({"messages": [USER, ASSISTANT | {"weight": 0.5}]}, "weight of a message is 0.5, not 0 or 1"),
    ({"messages": [{"role": "system", "content": "a"}, ASSISTANT], "system": "b"}, "a system message that is not"),
    ({"instruction": " ", "input": "", "output": "a"}, "instruction is not a string with text"),
    ({"question": 3, "answer": "a"}, "question is not a string with text"),
    *(({"messages": [USER, turn, ASSISTANT]}, "dialogue with tools") for turn in TOOLS),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_a_bad_row_is_refused_with_its_place_and_the_reason_and_one_of_no_shape_with_the_shapes(
    row: Any, why: str
) -> None:
    with pytest.raises(DataError) as caught:
        RowParser("chats", skip=False).parse("a.jsonl:7", row)
    assert str(caught.value).startswith(f"a.jsonl:7: {why}")
    unknown = any(words in why for words in ("no known shape", "an object with keys", "no keys"))
    shapes = f"{ROW_HINT}; " if unknown and "a message" not in why else ""
    assert caught.value.hint == f"{shapes}mend the row or leave it out, or set data.on_bad_line=skip"


@pytest.mark.parametrize("column", ["", "note", "n"])
def test_a_table_without_the_column_that_is_asked_for_is_pointed_to_its_longest_text(column: str) -> None:
    row = {"title": "a", "the body": "a body", "n": 1}
    with pytest.raises(DataError) as caught:
        RowParser("table", skip=False, column=column).parse("a.csv: row 1", row)
    assert caught.value.hint.startswith("set data.column to a column of text, such as 'data.column=the body', or")


def test_the_hint_shows_rows_that_are_read() -> None:
    decoder, at, shown = json.JSONDecoder(), ROW_HINT.find("{"), []
    while at >= 0:
        row, end = decoder.raw_decode(ROW_HINT, at)
        shown.append(type(parse_row(row)[1]))
        at = ROW_HINT.find("{", end)
    assert shown == [Dialogue, Dialogue, Dialogue, Document]


LEARN: tuple[Learn, ...] = ("assistant", "all")


def encode(messages: tuple[Message, ...], learn: Learn) -> list[ChatTokens]:
    words = [[*message.content.encode()] for message in messages]
    return encode_dialogue(messages, words, BytesTokenizer(), 100, learn)


def list_targets(messages: tuple[Message, ...], learn: Learn) -> list[int]:
    (tokens,) = encode(messages, learn)
    return [id for id, is_target in zip(tokens.ids, tokens.target_mask, strict=True) if is_target]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": True}])
def test_a_marked_message_is_never_learned_and_learning_all_adds_the_users_words(mark: dict[str, Any]) -> None:
    end = BytesTokenizer().special[END_OF_TURN]
    marked = parse({"messages": [USER, ASSISTANT | {"content": "BAD"} | mark, USER, ASSISTANT | {"weight": 1}]})
    assert list_targets(marked, "assistant") == [*b"yo", end]
    assert list_targets((SYSTEM, *marked), "all") == [*b"hi", end, *b"hi", end, *b"yo", end]
    unanswered = parse({"messages": [USER, ASSISTANT | mark]})
    assert not any(encode(unanswered, learn) for learn in LEARN)


def test_shapes_skips_and_ignored_keys_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tools = {"messages": [USER, {"role": "tool", "content": "4"}], "id": 1}
    named = {"messages": [USER | {"name": "Ann"}, ASSISTANT], "label": True, "tools": [], "rejected": None}
    rows = [*SHAPES.values(), named, {"text": "a", "\x1b[1m": "b"}, tools, ValueError("not JSON"), {"\x1b[2J": 1}]
    for _ in range(2):
        parser = RowParser("chats", skip=True)
        records = [parser.parse(f"a.jsonl:{number}", row) for number, row in enumerate(rows, 1)]
        parser.finish("a.jsonl", 2)
    assert [record is None for record in records] == [False] * 8 + [True] * 3
    counts, skipped = [record.getMessage() for record in caplog.records]
    shapes = "2 messages, 1 ShareGPT, 1 prompt/completion, 1 Alpaca, 1 Dolly, 1 question/answer, 1 text"
    start, _, listed = counts.partition("; ignored keys, with the rows that have them: ")
    assert start == f"data: chats: files: 2, rows: {shapes}"
    keys = ["\\x1b[1m (1)", "category (1)", "label (1)", "messages.name (1)", "tools (1)"]
    assert sorted(listed.split(", ")) == keys
    assert skipped == (
        "data: chats: skipped 3 of 11 rows (1 a dialogue with tools); the first: a.jsonl:9: dialogue with tools"
    )


def test_keys_without_end_take_no_memory() -> None:
    parser = RowParser("chats", skip=False)
    for number in range(10 * MAX_KEYS):
        parser.parse("a", {"text": "a", f"{number}": 1})
    assert len(parser.ignored) == MAX_KEYS
