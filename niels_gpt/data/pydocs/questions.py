"""Make dialogues about a Python object from its name, signature and docstring."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from niels_gpt.data.readers.records import Dialogue, Message
from niels_gpt.seeds import derived_seed

Kind = Literal["module", "class", "function", "method", "attribute"]
MAX_WORDS = 60
MAX_ARGUMENTS = 8
# Parts of the standard library that nobody calls: their names would only teach noise.
UNASKED = {"antigravity", "distutils", "idlelib", "this", "__future__"}


class Subject(NamedTuple):
    """What is known of one object; `arguments` are as in its signature, with / and *, or None if unknown."""

    name: str
    module: str
    kind: Kind
    arguments: tuple[str, ...] | None
    doc: str

    @property
    def short(self) -> str:
        """The name within its module."""
        return self.name.removeprefix(self.module + ".")

    @property
    def public(self) -> bool:
        """Whether people meet this object when they use the library."""
        parts = self.name.split(".")
        return parts[0] not in UNASKED and not any(p.startswith("_") or p == "test" for p in parts)


class Known(NamedTuple):
    """A subject with its answer, and whether its description or its short name points to it alone."""

    subject: Subject
    answer: str
    described: bool
    locatable: bool


ABOUT: dict[Kind, tuple[str, ...]] = {
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
ARGUMENTS = ("What arguments does {n} take?", "Which arguments does {n} have?", "What do I pass to {n}?")
CALL = ("How do I call {n}?", "What does a call of {n} look like?", "Show me how to call {n}.")
FIND = (
    'Which {k} of {o} has this description? "{d}"',
    'What is the name of the {k} of {o} described as "{d}"?',
    'Name the {k} of {o} that fits these words: "{d}"',
)
LOCATE = ("In which module is {s}?", "Where do I find {s}?", "Which module has {s}?")
IMPORT = ("How do I import {s}?", "Show me how to import {s}.")
KIND = ("Is {n} a function, a class or a module?", "What kind of object is {n}?")
NEXT_ARGUMENTS = ("And what arguments does it take?", "Which arguments does it have?")
NEXT_MODULE = ("In which module is it?", "Which module is it in?")
SYSTEM = (
    "You answer questions about Python.",
    "You are a helpful assistant who knows the Python library.",
    "You explain Python in a few words.",
)


def dialogues_about(subjects: Sequence[Subject]) -> Iterator[Dialogue]:
    """Yield the dialogues about all subjects; of those with the same name, about the first described."""
    for known in _known(subjects):
        yield from (Dialogue(known.subject.name, messages) for messages in _dialogues(known))


def first_paragraph(doc: str) -> str:
    """Return the first paragraph as sentences of at most MAX_WORDS words, or "" where it has none."""
    paragraphs = [_prose(" ".join(p.split())) for p in re.split(r"\n\s*\n", doc)]
    return _sentences(next(filter(None, paragraphs), ""))


def _prose(paragraph: str) -> str:
    """Return a paragraph without the signature or name it begins with: they say nothing of a purpose."""
    if re.fullmatch(r"[\w.]+\([^)]*\)+ ?(-+>.*)?", paragraph):
        return ""
    paragraph = re.sub(r"^([\w.]+\([^()]*\)( ?-+> ?[\w.]+)?( --?|:)? ?)+", "", paragraph)
    return _without_markup(re.sub(r"^([\w.]+ --?|[a-z_]+\.[\w.]+:) ", "", paragraph))


def _without_markup(text: str) -> str:
    text = re.sub(r":[\w:]+:`[~!]?([^`<]+?)(\s*<[^>`]*>)?`", r"\1", text)
    return re.sub(r"``?([^`']+)(``?|')", r"\1", text)


def _sentences(text: str) -> str:
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text):
        if len(" ".join([*kept, sentence]).split()) > MAX_WORDS or not _well_formed(sentence):
            break
        kept.append(sentence)
    answer = " ".join(kept)
    if answer and answer[-1] not in ".!?":
        answer += "."
    first, _, rest = answer.partition(" ")
    # An identifier keeps its case; an English word begins the sentence.
    return f"{first.capitalize() if first.islower() and first.isalpha() else first} {rest}" if rest else ""


def _well_formed(sentence: str) -> bool:
    """Whether a sentence stands by itself: no example, list, rule or table, and nothing it leads over to."""
    odd = (">>>", "::", "==", "\\", "|", " * ", " - ", "->", "http", "$", "TODO", "XXX")
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    prose = sum(c.isalpha() or c == " " for c in sentence) >= 0.8 * len(sentence)
    whole = not sentence.endswith((":", ",", ";"))
    return balanced and prose and whole and not any(o in sentence for o in odd)


def _known(subjects: Sequence[Subject]) -> Iterator[Known]:
    """Yield the public subjects with what may be asked of them without ambiguity."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        if subject.public and (subject.name not in first or not first[subject.name].doc):
            first[subject.name] = subject
    answers = {name: first_paragraph(subject.doc) for name, subject in first.items()}
    described = Counter((_owner(s), s.kind, _first_sentence(answers[s.name])) for s in first.values())
    shorts = Counter(s.short for s in first.values())
    for name, s in first.items():
        alone = described[_owner(s), s.kind, _first_sentence(answers[name])] == 1 and '"' not in answers[name]
        top_level = s.kind in ("class", "function") and "." in s.name and "." not in s.short
        yield Known(s, answers[name], alone, top_level and len(s.short) > 3 and shorts[s.short] == 1)


def _dialogues(known: Known) -> Iterator[tuple[Message, ...]]:
    """Yield the dialogues about one subject; what a few of all subjects suffice for is drawn by name."""
    s = known.subject
    if known.answer:
        yield _turns(s, [_about(known)])
    if known.answer and _listable(s):  # an object that nobody describes is seldom asked for
        yield _turns(s, [(_phrase(ARGUMENTS, s), _arguments(s))])
        yield _turns(s, [(_phrase(CALL, s), f"{s.name}({', '.join(s.arguments or ())})")])
    if known.answer and known.described and s.kind != "module":
        yield _turns(s, [(_phrase(FIND, s, d=_first_sentence(known.answer)), f"It is {s.name}.")])
    if known.locatable:
        yield _turns(s, [(_phrase(LOCATE, s), f"{s.short} is in the module {s.module}.")])
        yield _turns(s, [(_phrase(IMPORT, s), f"from {s.module} import {s.short}")])
    if s.kind in ("class", "function", "module") and _draw(s, "kind", 4) == 0:
        yield _turns(s, [(_phrase(KIND, s), f"{s.name} is a {s.kind}.")])
    if known.answer and s.kind != "module" and _draw(s, "chain", 2) == 0:
        yield _turns(s, _chain(known))


def _chain(known: Known) -> Iterator[tuple[str, str]]:
    s = known.subject
    yield _about(known)
    if _listable(s):
        yield _phrase(NEXT_ARGUMENTS, s), _arguments(s)
    yield _phrase(NEXT_MODULE, s), f"It is in the module {s.module}."


def _about(known: Known) -> tuple[str, str]:
    return _phrase(ABOUT[known.subject.kind], known.subject), known.answer


def _turns(subject: Subject, pairs: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Return questions and answers as messages; one dialogue in four begins with a system message."""
    messages: list[Message] = []
    for question, answer in pairs:
        messages += [Message("user", question), Message("assistant", answer)]
    if _draw(subject, messages[0].content, 4) == 0:
        messages.insert(0, Message("system", SYSTEM[_draw(subject, "system", len(SYSTEM))]))
    return tuple(messages)


def _listable(subject: Subject) -> bool:
    return subject.arguments is not None and len(subject.arguments) <= MAX_ARGUMENTS


def _arguments(subject: Subject) -> str:
    shown = [a for a in subject.arguments or () if a not in ("/", "*")]
    if not shown:
        return "It takes no arguments."
    return f"It takes {', '.join(shown[:-1])} and {shown[-1]}." if shown[1:] else f"It takes {shown[0]}."


def _owner(subject: Subject) -> str:
    return subject.name.rpartition(".")[0] or subject.module


def _first_sentence(answer: str) -> str:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", answer)[0]


def _phrase(phrasings: tuple[str, ...], subject: Subject, d: str = "") -> str:
    chosen = phrasings[_draw(subject, phrasings[0], len(phrasings))]
    return chosen.format(n=subject.name, s=subject.short, k=subject.kind, o=_owner(subject), d=d)


def _draw(subject: Subject, what: str, count: int) -> int:
    return derived_seed("pydocs", subject.name, what) % count
