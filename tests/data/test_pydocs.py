"""Tests of the text that every Python installation carries."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from niels_gpt.config import SourceCfg
from niels_gpt.data.pydocs import source as pydocs
from niels_gpt.data.pydocs.questions import MAX_WORDS, extract_answer
from niels_gpt.data.readers.records import Dialogue, Document
from niels_gpt.errors import DataError


def source(**settings: object) -> SourceCfg:
    return SourceCfg.model_validate(settings)


CFG = source()
DIGEST = """
import asyncio, functools, hashlib, multiprocessing, sqlite3, sys, unittest, xml.dom.minidom
from niels_gpt.config import SourceCfg
from niels_gpt.data.pydocs import source as pydocs
sys.excepthook = sys.unraisablehook = print
for name in ("parse_module", "describe_module"):
    setattr(pydocs, name, functools.cache(getattr(pydocs, name)))
found = [*pydocs.read_documents(SourceCfg()), *pydocs.read_dialogues(SourceCfg())]
print(hashlib.sha256(repr([tuple(x) for x in found]).encode()).hexdigest(), pydocs.fingerprint(SourceCfg()))
"""


class Found(NamedTuple):
    """All that the default settings yield."""

    documents: list[Document]
    dialogues: list[Dialogue]


@pytest.fixture(scope="module")
def found() -> Found:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_module", "describe_module"):  # read the library once
            patch.setattr(pydocs, name, cache(getattr(pydocs, name)))
        return Found(list(pydocs.read_documents(CFG)), list(pydocs.read_dialogues(CFG)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a package that cannot be imported, beside a standard library of two modules, which reads fast."""
    for name in ("heapq.py", "posixpath.py"):
        (tmp_path / "library").mkdir(exist_ok=True)
        shutil.copy(Path(sysconfig.get_path("stdlib"), name), tmp_path / "library")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "library"))
    folder = tmp_path / "unimportable" / "part"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text('raise SystemExit("it ran")\n')
    (folder / "__init__.py").touch()
    (folder / "mill.py").write_text(
        "class Mill:\n"
        '    def grind(self, grain, /, *, twice=True):\n        """Grind the grain to flour."""\n'
        '    def _oil(self):\n        """Oil <object object at 0x7f3a2b1c> from time to time."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "unimportable"


def asked(dialogues: list[Dialogue], name: str) -> list[tuple[str, str]]:
    """Return the questions about an object with their answers."""
    turns = [turn for d in dialogues if d.name == name for turn in pairwise(d.messages)]
    return [(q.content, a.content) for q, a in turns if q.role == "user"]


def questions(dialogue: Dialogue) -> tuple[str, ...]:
    return tuple(m.content for m in dialogue.messages if m.role == "user")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("os.path.join", "os.path.join(a, *p)\n\nJoin two or more pathname components"),
        ("fractions", "module fractions\n"),
        ("fractions.Fraction", "class fractions.Fraction(numerator=0, denominator=None"),
        ("collections.abc.Set.isdisjoint", "collections.abc.Set.isdisjoint(other)"),  # of _collections_abc
        ("functools.reduce", "functools.reduce("),  # of a module in C that functools imports it from
        ("str.join", "str.join(iterable, /)\n"),  # of a builtin type
        ("itertools.count", "class itertools.count("),  # of a module written in C
        ("os.listdir", "os.listdir(path=None)\n"),  # of posix
        ("topic assert", 'The "assert" statement'),
    ],
)
def test_objects_have_the_names_that_people_use(found: Found, name: str, start: str) -> None:
    assert next(d.text for d in found.documents if d.name == name).startswith(start)


def test_the_same_words_come_once_under_whatever_name(found: Found) -> None:
    texts = {" ".join(d.text.lower().split()) for d in found.documents}
    assert len(texts) == len(found.documents)
    bodies = [d.text.partition("\n\n")[2] for d in found.documents if re.match(r"[\w.]+\(.*\)\n\n", d.text)]
    assert len(bodies) > 4_000
    assert len(set(bodies)) == len(bodies)


def test_there_is_enough_to_learn_from_without_addresses_and_control_characters(found: Found) -> None:
    assert len(found.documents) > 8_000 and len(found.dialogues) > 12_000
    assert sum(len(d.text) for d in found.documents) > 2_500_000
    assert min(len(d.text) for d in found.documents) >= pydocs.MIN_CHARS
    texts = [d.text for d in found.documents] + [m.content for d in found.dialogues for m in d.messages]
    assert not [t for t in texts if re.search(r" at 0x[0-9A-Fa-f]{4,}|[\x00-\x08\x0b-\x1f]", t)]


@pytest.mark.slow
def test_the_same_comes_in_a_process_of_another_hash_seed_with_other_imports_and_hooks(found: Found) -> None:
    text = repr([tuple(x) for x in (*found.documents, *found.dialogues)])
    expected = f"{hashlib.sha256(text.encode()).hexdigest()} {pydocs.fingerprint(CFG)}"
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", DIGEST], env=env, text=True).strip() == expected


def test_dialogues_alternate_and_end_with_a_short_whole_answer(found: Found) -> None:
    for dialogue in found.dialogues:
        roles = [m.role for m in dialogue.messages if m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(m.content == m.content.strip() != "" for m in dialogue.messages)
        assert [m.role for m in dialogue.messages].count("system") <= (dialogue.messages[0].role == "system")
        answer = dialogue.messages[-1].content
        assert len(answer.split()) <= MAX_WORDS and answer[-1] in ".!?)"
    system = sum(d.messages[0].role == "system" for d in found.dialogues)
    assert 0.15 < system / len(found.dialogues) < 0.35
    assert sum(len(questions(d)) > 1 for d in found.dialogues) > 1_000


def test_a_dialogue_comes_once_under_the_name_of_its_public_subject_and_its_question_in_one_split(
    found: Found,
) -> None:
    assert len({questions(d) for d in found.dialogues}) == len(found.dialogues)
    names: dict[str, str] = {}
    for d in found.dialogues:
        assert names.setdefault(questions(d)[0], d.name) == d.name
        assert any(d.name.rpartition(".")[2] in m.content for m in d.messages)
        assert not re.search(r"(^|\.)(_|test\b)", d.name)


def test_well_known_answers(found: Found) -> None:
    told = dict(asked(found.dialogues, "os.path.join"))
    assert "It takes a and *p." in told.values()
    assert any(a.startswith("Join two or more pathname components") for a in told.values())
    assert "It is in the module os.path." in told.values()
    told = dict(asked(found.dialogues, "collections.namedtuple"))
    assert "namedtuple is in the module collections." in told.values()


def test_a_name_that_several_modules_have_is_not_asked_for(found: Found) -> None:
    located = re.compile(r"In which module is (\w+)\?|Where do I find (\w+)\?|Which module has (\w+)\?")
    matches = [located.fullmatch(questions(d)[0]) for d in found.dialogues]
    shorts = [next(filter(None, m.groups())) for m in matches if m]
    assert "namedtuple" in shorts
    assert len(set(shorts)) == len(shorts)
    assert not {"open", "main"} & set(shorts)


@pytest.mark.parametrize(
    ("doc", "paragraph"),
    [
        ("Return the sum\nof all. Quickly.\n\nMore.", "Return the sum of all. Quickly."),
        ("reduce(f, x) -> value\n\nFold the items into one", "Fold the items into one."),
        ("codecs -- the codec registry.", "The codec registry."),
        ("Use :class:`~a.B` or ``c`` here.", "Use a.B or c here."),
        ("Do this. The kinds are:\n\n- one", "Do this."),
        (">>> example()\n3", ""),
        ("Word " * (MAX_WORDS + 1), ""),
    ],
)
def test_the_answer_is_the_first_paragraph(doc: str, paragraph: str) -> None:
    assert extract_answer(doc) == paragraph


def test_a_package_is_read_without_being_run(package: str) -> None:
    before = set(sys.modules)
    cfg = source(packages=(f"{package}.part",))
    documents = list(pydocs.read_documents(cfg))
    mill = f"{package}.part.mill"
    assert {d.name: d.text for d in documents if d.name.startswith(package)} == {
        f"{mill}.Mill.grind": f"{mill}.Mill.grind(grain, /, *, twice=True)\n\nGrind the grain to flour.",
        f"{mill}.Mill._oil": f"{mill}.Mill._oil()\n\nOil <object object> from time to time.",
    }
    told = dict(asked(list(pydocs.read_dialogues(cfg)), f"{mill}.Mill.grind"))
    assert {"Grind the grain to flour.", "It takes grain and twice=True."} <= set(told.values())
    with_code = list(pydocs.read_documents(cfg.model_copy(update={"code": True})))
    assert with_code[: len(documents)] == documents
    sources = {d.name: d.text for d in with_code[len(documents) :]}
    assert sources.keys() >= {"os.path#source", "heapq#source"} and "class Mill:" in sources[f"{mill}#source"]
    assert not [m for m in set(sys.modules) - before if m.startswith(package)]


@pytest.mark.parametrize("name", ["no_such_package", "email.no_such_part", "", "..", "math"])
def test_a_package_that_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(DataError, match=rf"data\.packages names '{re.escape(name)}'") as error:
        pydocs.fingerprint(source(packages=(name,)))
    assert "data.packages" in error.value.hint


def test_the_fingerprint_tells_contents_apart_and_outlasts_a_reinstallation(package: str) -> None:
    cfgs = [CFG, source(code=True), source(packages=("pydantic",)), source(packages=(package,))]
    prints = [pydocs.fingerprint(c) for c in cfgs]
    mill = Path(sys.path[0]) / package / "part" / "mill.py"
    os.utime(mill, (0, 0))
    assert prints == [pydocs.fingerprint(c) for c in cfgs]
    mill.write_text(mill.read_text().replace("flour", "meal"))
    prints.append(pydocs.fingerprint(cfgs[-1]))
    mill.rename(mill.with_stem("miller"))
    prints.append(pydocs.fingerprint(cfgs[-1]))
    assert len(set(prints)) == len(cfgs) + 2
