"""The records that a source yields: documents to read and dialogues to answer."""

from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a dialogue. If `learn` is false, its words are never a target."""

    role: Role
    content: str
    learn: bool = True


class Document(NamedTuple):
    """A text to learn from. Records with the same `name` are in the same split."""

    name: str
    text: str


class Dialogue(NamedTuple):
    """Messages in turn, at least one of them from the assistant. `name` as in Document."""

    name: str
    messages: tuple[Message, ...]
