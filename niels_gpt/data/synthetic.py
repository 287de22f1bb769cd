"""Generate text with checkable statements, the same on every machine."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers.records import Dialogue, Document, Message
from niels_gpt.seeds import derive_seed

MAX_NUMBER = 30
WORDS = (
    "apple bread bridge candle chair cloud door field flower forest garden glass hand house island key lake "
    "lamp leaf letter light moon morning mountain music night ocean paper pencil rain river road salt sand "
    "ship shoe silver sky snow song spoon star stone street summer sun table tree water wind window winter"
)
SYSTEM = ("You answer in one word.", "You are a careful assistant.", "Answer the question.")


class Topic(NamedTuple):
    """A subject with its true statements, and questions with their answers."""

    name: str
    statements: Sequence[str]
    questions: Sequence[tuple[str, str]]


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield cfg.size documents of one to six lines, each a function of its index alone."""
    return map(_make_document, range(cfg.size))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield cfg.size dialogues of one or two questions, each a function of its index alone."""
    return map(_make_dialogue, range(cfg.size))


def fingerprint(cfg: SourceCfg) -> str:
    """Return a text that changes with the size."""
    return f"size={cfg.size}"


def _make_document(index: int) -> Document:
    topic = _draw_topic(index, "document")
    lines = 1 + _draw(6, index, "lines")
    # Sorting by seeds shuffles without a random state.
    order = sorted(range(len(topic.statements)), key=lambda i: derive_seed("synthetic", "order", index, i))
    return Document(topic.name, "\n".join(topic.statements[i] for i in order[:lines]))


def _make_dialogue(index: int) -> Dialogue:
    topic = _draw_topic(index, "dialogue")
    first = _draw(len(topic.questions), index, "first")
    asked = [topic.questions[first]]
    if _draw(3, index, "turns") == 0:
        other = (first + 1 + _draw(len(topic.questions) - 1, index, "second")) % len(topic.questions)
        asked.append(topic.questions[other])
    messages = [m for q, a in asked for m in (Message("user", q), Message("assistant", a))]
    if _draw(4, index, "system") == 0:
        messages.insert(0, Message("system", SYSTEM[_draw(len(SYSTEM), index, "which")]))
    return Dialogue(topic.name, tuple(messages))


def _draw_topic(index: int, use: str) -> Topic:
    """Draw a topic. A question belongs to one topic, whose name keeps it in one split."""
    make = (_make_numbers, _make_word)[_draw(2, index, use, "kind")]
    return make(derive_seed("synthetic", use, index, "topic"))


def _make_numbers(seed: int) -> Topic:
    a, b = sorted((seed % MAX_NUMBER, seed // MAX_NUMBER % MAX_NUMBER))
    b += a == b  # so that one of them is larger
    total = [(f"What is {x} plus {y}?", f"{a + b}") for x, y in ((a, b), (b, a))]
    larger = [(f"Which is larger, {x} or {y}?", f"{b}") for x, y in ((a, b), (b, a))]
    count = ", ".join(map(str, range(a, b + 1)))
    statements = [
        f"{a} plus {b} is {a + b}.",
        f"{b} plus {a} is {a + b}.",
        f"{b} minus {a} is {b - a}.",
        f"{b} is larger than {a}.",
        f"{a} is smaller than {b}.",
        f"Count from {a} to {b}: {count}.",
    ]
    return Topic(f"{a} and {b}", statements, [*total, *larger, (f"What is {b} minus {a}?", f"{b - a}")])


def _make_word(seed: int) -> Topic:
    words = WORDS.split()
    word = words[seed % len(words)]
    backwards = word[::-1]
    statements = [
        f"The word {word} has {len(word)} letters.",
        f"Backwards, {word} is {backwards}.",
        f"The word {word} begins with {word[0]}.",
        f"The word {word} ends with {word[-1]}.",
        f"Say {word} twice: {word} {word}.",
        f"The letters of {word} are {', '.join(word)}.",
    ]
    questions = [
        (f"Repeat the word {word}.", word),
        (f"Spell {word} backwards.", backwards),
        (f"How many letters does {word} have?", f"{len(word)}"),
        (f"What is the first letter of {word}?", word[0]),
        (f"What is the last letter of {word}?", word[-1]),
    ]
    return Topic(f"word {word}", statements, questions)


def _draw(count: int, *parts: int | str) -> int:
    return derive_seed("synthetic", *parts) % count
