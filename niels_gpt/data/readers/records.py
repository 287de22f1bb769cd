"""The records that a source yields: documents to read and dialogues to answer."""

from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class Message(NamedTuple):
    """What one role says in its turn."""

    role: Role
    content: str


class Document(NamedTuple):
    """A text to learn from. `name` says what it is about: one name never stands in both splits."""

    name: str
    text: str


class Dialogue(NamedTuple):
    """Messages in turn, at least one of them the assistant's. `name` as in Document."""

    name: str
    messages: tuple[Message, ...]
