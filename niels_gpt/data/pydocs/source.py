"""Turn the docstrings, comments and help topics of this Python into text and dialogues."""

import hashlib
import importlib
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from niels_gpt.config import SourceCfg
from niels_gpt.data.pydocs.builtins import COMPILED, compiled
from niels_gpt.data.pydocs.locate import source_files, source_of, state_of
from niels_gpt.data.pydocs.parse import Module, is_prose, parsed
from niels_gpt.data.pydocs.questions import Subject, dialogues_about
from niels_gpt.data.readers.records import Dialogue, Document

MIN_CHARS = 40


def documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield a document for each object, comment, topic and (cfg.code) file, always in the same order."""
    seen: set[bytes] = set()
    for name, header, body in _texts(cfg):
        # The header says whose text it is: the same words under another name are no new text.
        key = hashlib.sha256(" ".join(body.lower().split()).encode()).digest()
        text = _tidy(f"{header}\n\n{body}")
        if key not in seen and len(text) >= MIN_CHARS:
            seen.add(key)
            yield Document(name, text)


def dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield questions and answers about the objects; all dialogues about an object carry its name."""
    return dialogues_about([s._replace(doc=_tidy(s.doc)) for s in _subjects(_modules(cfg))])


def fingerprint(cfg: SourceCfg) -> str:
    """Return a text that differs wherever what there is to read does."""
    library = Path(sysconfig.get_path("stdlib"))
    # Distributions leave parts of the standard library out, hence the listings beside the version.
    listings = [sorted(f.name for f in d.iterdir()) for d in (library, library / "lib-dynload") if d.is_dir()]
    found = repr((sys.version, sys.platform, sys.builtin_module_names, listings))
    digest = hashlib.sha256(found.encode()).hexdigest()[:16]
    packages = ",".join(f"{name}={state_of(name)}" for name in cfg.packages)
    return f"pydocs {platform.python_version()} {digest} packages={packages} code={cfg.code}"


def _texts(cfg: SourceCfg) -> Iterator[tuple[str, str, str]]:
    """Yield (name, header, body) of all there is to read."""
    modules = _modules(cfg)
    yield from ((s.name, _header(s), s.doc) for s in _subjects(modules) if is_prose(s.doc))
    yield from ((f"{m.name}#comments", "", text) for m in modules for text in m.comments)
    yield from ((f"topic {key}", "", text) for key, text in _topics() if is_prose(text))
    if cfg.code:
        yield from ((f"{name}#source", "", source_of(path)) for name, path in source_files(cfg.packages))


def _header(subject: Subject) -> str:
    """Return the line that the document of an object begins with, such as class array.array(typecode)."""
    label = f"{subject.kind} " if subject.kind in ("module", "class", "attribute") else ""
    arguments = "" if subject.arguments is None else f"({', '.join(subject.arguments)})"
    return f"{label}{subject.name}{arguments}"


def _topics() -> list[tuple[str, str]]:
    """Return the chapters of the language reference that help() shows."""
    try:
        return sorted(importlib.import_module("pydoc_data.topics").topics.items())
    except ImportError:  # a distribution may leave them out
        return []


def _tidy(text: str) -> str:
    """Return the text without memory addresses, which differ from run to run, and without trailing blanks."""
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", text).replace("\f", "")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _modules(cfg: SourceCfg) -> list[Module]:
    """Return what all modules hold: those that have a source file first, in their order."""
    modules = [parsed(name, path) for name, path in source_files(cfg.packages)]
    return modules + [Module(name, list(compiled(name))) for name in COMPILED.split()]


def _subjects(modules: list[Module]) -> Iterator[Subject]:
    """Yield all objects under the names that people use: asyncio.run, not asyncio.runners.run."""
    exported = {m.name: m.exported for m in modules}
    moved: dict[tuple[str, str], str] = {}
    for m in sorted(modules, key=lambda m: m.name):
        for source, name in m.imported:
            if _passes_on(m, source, name):
                moved.setdefault((source, name), m.name)
                if name == "*":
                    moved.update({(source, n): m.name for n in exported.get(source) or ()})
    yield from (_renamed(s, moved, exported) for m in modules for s in m.subjects)


def _passes_on(module: Module, source: str, name: str) -> bool:
    """Whether what a module imports is meant to be found under the module's own name."""
    part, hidden = source.startswith(f"{module.name}."), source.startswith("_") or "._" in source
    if module.name.startswith("_") or "._" in module.name or name.startswith("_"):
        return False
    if name == "*" or module.exported is None:
        return part or (hidden and name == "*")
    return (part or hidden) and name in module.exported


def _renamed(
    subject: Subject, moved: dict[tuple[str, str], str], exported: dict[str, frozenset[str] | None]
) -> Subject:
    """Return the subject under the name it is passed on by, and that in turn by another module perhaps."""
    top = subject.short.split(".")[0]
    star = moved.get((subject.module, "*")) if exported.get(subject.module) is None else None
    module = moved.get((subject.module, top), star)
    if module is None or subject.kind == "module":
        return subject
    return _renamed(subject._replace(name=f"{module}.{subject.short}", module=module), moved, exported)
