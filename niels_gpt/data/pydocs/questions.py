"""Make dialogues about Python objects from their names, signatures and docstrings."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from niels_gpt.data.pydocs.parse import DocumentedObject, Kind
from niels_gpt.data.readers.records import Dialogue, Message
from niels_gpt.seeds import derive_seed

MAX_WORDS = 60
MAX_ARGUMENTS = 8
# Parts of the standard library that nobody calls: their names would only teach noise.
UNASKED = {"antigravity", "distutils", "idlelib", "this", "__future__"}
ODD = (">>>", "::", "==", "\\", "|", " * ", " - ", "->", "http", "$", "TODO", "XXX")  # no plain sentence has them

PURPOSE_QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "module": (
        "What is the module {n} for?",
        "What does the module {n} provide?",
        "Tell me about the module {n}.",
    ),
    "class": ("What is the class {n} for?", "What is {n}?", "Tell me about the class {n}."),
    "function": ("What does {n} do?", "What is {n} for?", "Explain the function {n}."),
    "method": ("What does {n} do?", "What is {n} for?", "Explain the method {n}."),
    "attribute": ("What is {n}?", "What does the attribute {n} hold?"),
}
ARGUMENT_QUESTIONS = ("What arguments does {n} take?", "Which arguments does {n} have?", "What do I pass to {n}?")
LOCATION_QUESTIONS = ("In which module is {s}?", "Where do I find {s}?", "Which module has {s}?")
NEXT_ARGUMENTS = ("And what arguments does it take?", "Which arguments does it have?")
NEXT_MODULE = ("In which module is it?", "Which module is it in?")
SYSTEM = (
    "You answer questions about Python.",
    "You are a helpful assistant who knows the Python library.",
    "You explain Python in a few words.",
)


def make_dialogues(subjects: Sequence[DocumentedObject]) -> Iterator[Dialogue]:
    """Yield the dialogues about all public objects; of those with the same name, about the first described."""
    first: dict[str, DocumentedObject] = {}
    for s in subjects:
        if _is_public(s) and (s.name not in first or not first[s.name].doc):
            first[s.name] = s
    shorts = Counter(s.short for s in first.values())
    for s in first.values():
        yield from (Dialogue(s.name, _make_turns(s, pairs)) for pairs in _make_exchanges(s, shorts[s.short] == 1))


def _is_public(subject: DocumentedObject) -> bool:
    parts = subject.name.split(".")
    return parts[0] not in UNASKED and not any(p.startswith("_") or p == "test" for p in parts)


def _make_exchanges(s: DocumentedObject, unique: bool) -> Iterator[list[tuple[str, str]]]:
    """Yield the questions and answers of each dialogue about `s`; `unique` if no other has its short name."""
    answer = extract_answer(s.doc)
    if answer:
        about = (_phrase(PURPOSE_QUESTIONS[s.kind], s), answer)
        arguments = _say_arguments(s)
        yield [about]
        if arguments:
            yield [(_phrase(ARGUMENT_QUESTIONS, s), arguments)]
        if s.kind != "module" and _draw(s, "chain", 2) == 0:
            then = [(_phrase(NEXT_ARGUMENTS, s), arguments)] if arguments else []
            yield [about, *then, (_phrase(NEXT_MODULE, s), f"It is in the module {s.module}.")]
    top_level = s.kind in ("class", "function") and "." in s.name and "." not in s.short
    if unique and top_level and len(s.short) > 3:
        yield [(_phrase(LOCATION_QUESTIONS, s), f"{s.short} is in the module {s.module}.")]


def _make_turns(subject: DocumentedObject, pairs: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Return questions and answers as messages; one dialogue in four begins with a system message."""
    messages = [m for q, a in pairs for m in (Message("user", q), Message("assistant", a))]
    if _draw(subject, messages[0].content, 4) == 0:
        messages.insert(0, Message("system", SYSTEM[_draw(subject, "system", len(SYSTEM))]))
    return tuple(messages)


def _say_arguments(subject: DocumentedObject) -> str:
    """Return the arguments as a sentence, "" if they are unknown or too many."""
    if subject.arguments is None or len(subject.arguments) > MAX_ARGUMENTS:
        return ""
    shown = [a for a in subject.arguments if a not in ("/", "*")]
    if not shown:
        return "It takes no arguments."
    return f"It takes {', '.join(shown[:-1])} and {shown[-1]}." if shown[1:] else f"It takes {shown[0]}."


def _phrase(phrasings: tuple[str, ...], subject: DocumentedObject) -> str:
    chosen = phrasings[_draw(subject, phrasings[0], len(phrasings))]
    return chosen.format(n=subject.name, s=subject.short)


def _draw(subject: DocumentedObject, purpose: str, count: int) -> int:
    return derive_seed("pydocs", subject.name, purpose) % count


def extract_answer(doc: str) -> str:
    """Return the first paragraph as sentences of at most MAX_WORDS words, or "" if there is none."""
    paragraphs = (_strip_signature(" ".join(p.split())) for p in re.split(r"\n\s*\n", doc))
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", next(filter(None, paragraphs), "")):
        if len(" ".join([*kept, sentence]).split()) > MAX_WORDS or not _is_self_contained(sentence):
            break
        kept.append(sentence)
    answer = " ".join(kept)
    if answer and answer[-1] not in ".!?":
        answer += "."
    first, _, rest = answer.partition(" ")
    # An identifier keeps its case; an English word begins the sentence.
    return f"{first.capitalize() if first.islower() and first.isalpha() else first} {rest}" if rest else ""


def _strip_signature(paragraph: str) -> str:
    """Return a paragraph without markup, and without the signature or name that it begins with."""
    if re.fullmatch(r"[\w.]+\([^)]*\)+ ?(-+>.*)?", paragraph):
        return ""
    text = re.sub(r"^([\w.]+\([^()]*\)( ?-+> ?[\w.]+)?( --?|:)? ?)+", "", paragraph)
    text = re.sub(r"^([\w.]+ --?|[a-z_]+\.[\w.]+:) ", "", text)
    text = re.sub(r":[\w:]+:`[~!]?([^`<]+?)(\s*<[^>`]*>)?`", r"\1", text)
    return re.sub(r"``?([^`']+)(``?|')", r"\1", text)


def _is_self_contained(sentence: str) -> bool:
    """Return whether a sentence stands by itself: no example, list, rule or table, and no lead-in to one."""
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    prose = sum(c.isalpha() or c == " " for c in sentence) >= 0.8 * len(sentence)
    return balanced and prose and sentence[-1:] not in list(":,;") and not any(odd in sentence for odd in ODD)
