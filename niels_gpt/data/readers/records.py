"""The records that a source yields: documents to read and dialogues to answer."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Literal, NamedTuple

SECTION = 16 << 10  # characters; a longer document is read in sections

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a dialogue. If `learn` is false, its words are never a target."""

    role: Role
    content: str
    learn: bool = True


class Document(NamedTuple):
    """A text to learn from, or a section of one, which the next record continues unless it `ends` here.

    Records with the same `name` are in the same split. Text without a name is known by its content, and may be
    cut.
    """

    name: str
    text: str
    ends: bool = True


class Dialogue(NamedTuple):
    """Messages in turn, at least one of them from the assistant. `name` as in Document."""

    name: str
    messages: tuple[Message, ...]


def cut_sections(lines: Iterable[str]) -> Iterator[Document]:
    """Yield a document in sections, each up to the first blank line after SECTION characters, or after twice that.

    A section that is cut again stays whole, so that all readers arrive at the same sections.
    """
    sections = filter(str.strip, join_lines(lines, SECTION, 2 * SECTION))
    for section, after in pairwise(chain(sections, [""])):
        yield Document("", section, ends=not after)


def join_lines(lines: Iterable[str], min_chars: int, max_chars: int) -> Iterator[str]:
    """Join lines into pieces that end at the first blank line after `min_chars`, or after `max_chars`."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= max_chars or (size >= min_chars and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)
