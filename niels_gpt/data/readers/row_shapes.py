"""Recognise the shape of a row by its keys, and make a document or a dialogue of it."""

import hashlib
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from niels_gpt.data.readers.records import Dialogue, Document, Message, Role
from niels_gpt.errors import DataError
from niels_gpt.printable import escape_line

ROW_HINT = (
    'a row looks like {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]},'
    ' {"prompt": "...", "completion": "..."}, {"instruction": "...", "output": "..."} or {"text": "..."}'
)
WITH_TOOLS = "dialogue with tools"
MAX_KEYS = 20  # ignored keys that are counted, the first there are

TURNS = {"messages": "messages", "conversations": "ShareGPT"}  # key of the list: shape
PAIRS = {  # shape: keys of the question, of what may come with it, and of the answer
    "prompt/completion": ("prompt", None, "completion"),
    "Alpaca": ("instruction", "input", "output"),
    "Dolly": ("instruction", "context", "response"),
    "question/answer": ("question", "context", "answer"),
}
ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
ROLES |= {"developer": "system", "human": "user", "gpt": "assistant"}
TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
TURN_KEYS = {"role", "from", "content", "value", "weight", "train", "tool_calls", "function_call"}


def parse_row(row: object, column: str = "") -> tuple[str, Document | Dialogue | None, set[str]]:
    """Return the shape of a row, its record, and its keys that were not looked at. None counts as absent.

    Of a `column`, the record is its text or None. LookupError if it has no known shape, ValueError if it is bad.
    """
    if not isinstance(row, Mapping):
        raise LookupError("not an object with keys")
    if column:
        if column not in row:
            raise LookupError(f"no column {column!r:.80}, only {', '.join(map(str, row)):.200}")
        if not isinstance(text := row[column], str | None):
            raise LookupError(f"column {column!r:.80} holds {type(text).__name__}, not text")
        return ("text", Document("", text), set()) if text and text.strip() else ("without text", None, set())
    given = {str(key): value for key, value in row.items() if value is not None}
    for key, shape in TURNS.items():
        if isinstance(turns := given.get(key), list | tuple):
            messages = [message for turn in turns if (message := _parse_turn(turn))]
            said = [(name, value) for turn in turns for name, value in turn.items() if name not in TURN_KEYS]
            unknown = {f"{key}.{name}" for name, value in said if value is not None}
            return shape, _make_dialogue(given, messages), unknown | given.keys() - {key, "system"}
    for shape, (question, about, answer) in PAIRS.items():
        if question in given and answer in given:
            asked = [given[key] for key in (question, about) if key and not _is_blank(given.get(key))]
            text = "\n\n".join(_get_text(part, question) for part in asked or [""])
            messages = [Message("user", text), Message("assistant", _get_text(given[answer], answer))]
            used = {question, about, answer, "system"}
            return shape, _make_dialogue(given, messages), given.keys() - used
    if "text" in given:
        text = _get_text(given["text"], "text")
        return "text", Document("", text), given.keys() - {"text"}
    keys = ", ".join(given)
    raise LookupError(f"no known shape; its keys are {keys:.200}" if given else "has no keys with values")


def _parse_turn(turn: object) -> Message | None:
    """Return a message, or None for a system message without text."""
    if not isinstance(turn, Mapping):
        raise ValueError("a message that is not an object with keys")
    role, content = (turn.get(key) or turn.get(other) for key, other in (("role", "from"), ("content", "value")))
    if turn.get("tool_calls") or turn.get("function_call") or role in TOOL_ROLES:
        raise ValueError(WITH_TOOLS)
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"a message of role {role!r:.40}, not system, user or assistant")
    if ROLES[role] == "system" and _is_blank(content):
        return None
    return Message(ROLES[role], _get_text(content, "content"), _is_learned(turn))


def _is_learned(turn: Mapping[str, Any]) -> bool:
    """Return whether neither weight nor train says otherwise."""
    for key in ("weight", "train"):
        if turn.get(key) not in (None, 0, 1):  # true and false are 1 and 0
            raise ValueError(f"{key} of a message is {turn[key]!r:.40}, not 0 or 1, or true or false")
    return turn.get("weight") != 0 and turn.get("train") != 0


def _make_dialogue(row: Mapping[str, Any], messages: Sequence[Message]) -> Dialogue:
    """Return a dialogue named by its first question; a row's key `system` is its system message."""
    if not _is_blank(row.get("system")):
        messages = [Message("system", _get_text(row["system"], "system")), *messages]
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system message that is not the first")
    if all(message.role != "assistant" for message in messages):
        raise ValueError("no assistant message")
    question = next((message for message in messages if message.role == "user"), messages[0])
    return Dialogue(hashlib.sha256(question.content.encode()).hexdigest()[:32], tuple(messages))


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _get_text(value: object, key: str) -> str:
    """Return a text, or the joined texts of a list of parts."""
    if isinstance(value, list | tuple):
        value = "".join(_get_part(part, key) for part in value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is not a string with text")
    return value


def _get_part(part: object, key: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "tool_use" | "tool_result" | "tool_call"}:
            raise ValueError(WITH_TOOLS)
    raise ValueError(f"{key} has a part that is not text")


class RowParser:
    """Parse the rows of a source; count shapes, ignored keys and skipped rows, and log them once."""

    def __init__(self, label: str, skip: bool, column: str | None = None) -> None:
        """`label` names the source in the log; `skip` bad rows instead of raising. None: it has no columns."""
        self.label, self.skip, self.column, self.first_bad, self.hint = label, skip, column, "", ROW_HINT
        self.shapes, self.ignored, self.bad = Counter[str](), Counter[str](), Counter[bool]()

    def parse(self, place: str, row: object) -> Document | Dialogue | None:
        """Return the record of a row, or None if it is skipped. DataError if it is bad, as a ValueError is."""
        try:
            if isinstance(row, ValueError):
                raise row
            shape, record, ignored = parse_row(row, self.column or "")
        except (LookupError, ValueError) as error:
            if not self.first_bad:
                self.first_bad, self.hint = f"{place}: {error}", self._advise(row, error)
            if not self.skip:
                raise DataError(self.first_bad, self.hint) from error
            self.bad[str(error) == WITH_TOOLS] += 1
            return None
        self.shapes[shape] += 1
        self.ignored.update(key for key in ignored if key in self.ignored or len(self.ignored) < MAX_KEYS)
        return record

    def _advise(self, row: object, error: Exception) -> str:
        unknown = isinstance(error, LookupError)
        texts = {key: len(row[key]) for key in row if isinstance(row[key], str)} if isinstance(row, dict) else {}
        if unknown and texts and self.column is not None and not self.shapes:
            choice = shlex.quote(f"data.column={max(texts, key=texts.__getitem__):.80}")
            return f"set data.column to a column of text, such as {choice}, or rename keys to prompt, completion"
        mend = f"{ROW_HINT}; mend the row" if unknown else "mend the row"
        return f"{mend} or leave it out" + ", or set data.on_bad_line=skip" * (not self.skip)

    def finish(self, where: str, files: int) -> None:
        """Raise DataError if no row of `where` was good; log what was in so many files, if any."""
        if not self.shapes:
            why = f"no usable row of {self.bad.total()}; {self.first_bad}" if self.bad else "no rows"
            raise DataError(f"{where}: {why}", self.hint)
        if not files:
            return
        shapes = ", ".join(f"{count:,} {shape}" for shape, count in self.shapes.most_common())
        keys = [f"{escape_line(key):.60} ({count:,})" for key, count in self.ignored.most_common()]
        ignored = f"; ignored keys, with the rows that have them: {', '.join(keys)}" if keys else ""
        log_once(logging.INFO, f"data: {self.label}: files: {files:,}, rows: {shapes}{ignored}")
        if bad := self.bad.total():
            named = f" ({n} {'a dialogue' if n == 1 else 'dialogues'} with tools)" if (n := self.bad[True]) else ""
            said = f"skipped {bad:,} of {bad + self.shapes.total():,} rows{named}; the first: {self.first_bad}"
            log_once(logging.WARNING, f"data: {self.label}: {escape_line(said)}")


@cache
def log_once(level: int, message: str) -> None:
    """Log a message that this process has not logged yet: a source is read several times."""
    logging.getLogger("niels_gpt").log(level, "%s", message)
