"""Tests of the procedural text, whose answers can be checked."""

import hashlib
import re
from collections.abc import Callable
from itertools import pairwise

from niels_gpt.config import SourceCfg
from niels_gpt.data import synthetic

SOLVERS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"What is (\d+) plus (\d+)\?", lambda a, b: str(int(a) + int(b))),
    (r"What is (\d+) minus (\d+)\?", lambda a, b: str(int(a) - int(b))),
    (r"Which is larger, (\d+) or (\d+)\?", lambda a, b: str(max(int(a), int(b)))),
    (r"Repeat the word (\w+)\.", lambda word: str(word)),
    (r"Spell (\w+) backwards\.", lambda word: "".join(reversed(word))),
    (r"How many letters does (\w+) have\?", lambda word: str(len(word))),
    (r"What is the first letter of (\w+)\?", lambda word: str(word[0])),
    (r"What is the last letter of (\w+)\?", lambda word: str(word[-1])),
)


def right_answer(question: str) -> str | None:
    """As read from the question itself; None for a question of no known form."""
    for pattern, solve in SOLVERS:
        if match := re.fullmatch(pattern, question):
            return solve(*match.groups())
    return None


def source(size: int) -> SourceCfg:
    return SourceCfg(kind="synthetic", size=size)


CFG = source(3000)
DOCUMENTS = list(synthetic.read_documents(CFG))
DIALOGUES = list(synthetic.read_dialogues(CFG))
TURNS = [(d.name, q, a) for d in DIALOGUES for q, a in pairwise(d.messages) if q.role == "user"]
ASKED = [(name, q.content, a.content) for name, q, a in TURNS]


def test_as_many_come_as_asked_for_each_by_its_index_alone_and_with_another_fingerprint() -> None:
    assert len(DOCUMENTS) == len(DIALOGUES) == CFG.size
    small = source(50)
    assert list(synthetic.read_documents(small)) == DOCUMENTS[:50]
    assert list(synthetic.read_dialogues(small)) == DIALOGUES[:50]
    assert synthetic.fingerprint(small) != synthetic.fingerprint(CFG) == synthetic.fingerprint(source(3000))


def test_the_texts_are_those_of_every_process_and_of_earlier_checkpoints() -> None:
    text = repr([x[:2] for x in (*DOCUMENTS, *DIALOGUES)]).replace(", learn=True", "")
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e9c911ded95a7674"


def test_every_answer_is_right_and_every_form_of_question_is_asked() -> None:
    assert [(q, a) for _, q, a in ASKED if right_answer(q) != a] == []
    assert [p for p, _ in SOLVERS if not any(re.fullmatch(p, q) for _, q, _ in ASKED)] == []


def test_a_question_or_a_line_of_a_document_has_one_name_and_so_one_split() -> None:
    names: dict[str, str] = {}
    lines = [(d.name, line) for d in DOCUMENTS for line in d.text.splitlines()]
    for name, text in [*lines, *((name, question) for name, question, _ in ASKED)]:
        assert names.setdefault(text, name) == name, text
    assert len({d.name for d in DIALOGUES}) > 300


def test_statements_about_numbers_and_words_are_true() -> None:
    text = "\n".join(d.text for d in DOCUMENTS)
    sums = re.findall(r"(\d+) (plus|minus) (\d+) is (\d+)\.", text)
    assert len(sums) > 500
    assert all(int(c) == (int(a) + int(b) if sign == "plus" else int(a) - int(b)) for a, sign, b, c in sums)
    backwards = re.findall(r"Backwards, (\w+) is (\w+)\.", text)
    assert len(backwards) > 100
    assert all(word[::-1] == back for word, back in backwards)


def test_documents_have_one_to_six_lines_and_dialogues_one_or_two_turns_and_some_a_system_message() -> None:
    lines = [d.text.split("\n") for d in DOCUMENTS]
    assert {len(x) for x in lines} == {1, 2, 3, 4, 5, 6}
    assert all(len(set(x)) == len(x) and all(x) for x in lines)
    turn = ("user", "assistant")
    roles = {tuple(m.role for m in d.messages) for d in DIALOGUES}
    assert roles == {turn, turn * 2, ("system", *turn), ("system", *turn * 2)}
    asked = [[m.content for m in d.messages if m.role == "user"] for d in DIALOGUES]
    assert all(len(set(questions)) == len(questions) for questions in asked)
