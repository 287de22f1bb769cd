"""Turn the docstrings and help topics of the installed Python into text and dialogues."""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterator

from niels_gpt.config import SourceCfg
from niels_gpt.data.pydocs.builtins import COMPILED, describe_module
from niels_gpt.data.pydocs.locate import find_source_files, read_source
from niels_gpt.data.pydocs.parse import DocumentedObject, parse_module
from niels_gpt.data.pydocs.questions import make_dialogues
from niels_gpt.data.readers.records import Dialogue, Document

MIN_CHARS = 40


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield a document for each object, help topic and (cfg.code) file, always in the same order."""
    seen: set[bytes] = set()
    for name, header, body in _read_texts(cfg):
        # The header is left out: the same words under another name add nothing.
        key = hashlib.sha256(" ".join(body.lower().split()).encode()).digest()
        text = _tidy(f"{header}\n\n{body}")
        if key not in seen and len(text) >= MIN_CHARS:
            seen.add(key)
            yield Document(name, text)


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield questions and answers about the objects; all dialogues about an object carry its name."""
    return make_dialogues([s._replace(doc=_tidy(s.doc)) for s in _read_subjects(cfg)])


def fingerprint(cfg: SourceCfg) -> str:
    """Return a text that changes with the Python, its modules, the packages and the settings."""
    # Distributions leave parts of the standard library out, hence the files beside the version.
    files = [(name, path.stat().st_size) for name, path in find_source_files(cfg.packages)]
    found = repr((sys.version, sys.platform, sys.builtin_module_names, files, cfg.code))
    return hashlib.sha256(found.encode()).hexdigest()


def _read_texts(cfg: SourceCfg) -> Iterator[tuple[str, str, str]]:
    """Yield (name, header, body) of every text."""
    yield from ((s.name, _make_header(s), s.doc) for s in _read_subjects(cfg) if _is_prose(s.doc))
    try:  # the chapters of the language reference that help() shows; a distribution may leave them out
        topics = sorted(importlib.import_module("pydoc_data.topics").topics.items())
    except ImportError:
        topics = []
    yield from ((f"topic {key}", "", text) for key, text in topics if _is_prose(text))
    if cfg.code:
        yield from ((f"{name}#source", "", read_source(path)) for name, path in find_source_files(cfg.packages))


def _read_subjects(cfg: SourceCfg) -> list[DocumentedObject]:
    """Return the objects of all modules: those with a source file first."""
    parsed = [s for name, path in find_source_files(cfg.packages) for s in parse_module(name, path)]
    return parsed + [s for name in COMPILED.split() for s in describe_module(name)]


def _make_header(subject: DocumentedObject) -> str:
    """Return the first line of an object's document, such as class array.array(typecode)."""
    label = f"{subject.kind} " if subject.kind in ("module", "class", "attribute") else ""
    arguments = "" if subject.arguments is None else f"({', '.join(subject.arguments)})"
    return f"{label}{subject.name}{arguments}"


def _is_prose(text: str) -> bool:
    """Return whether a text is mostly letters, has three words or more, and no control characters."""
    letters = sum(c.isalpha() or c.isspace() for c in text)
    readable = letters >= 0.6 * len(text) and not re.search(r"[\x00-\x08\x0e-\x1f\ufffd]", text)
    return readable and len(text.split()) >= 3


def _tidy(text: str) -> str:
    """Return the text without memory addresses, which differ from run to run, and without trailing blanks."""
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", text).replace("\f", "")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
