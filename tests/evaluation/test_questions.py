"""Questions with known answers: exact answers and choices, beside what chance gives."""

from itertools import groupby

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from niels_gpt.config import ModelCfg
from niels_gpt.data.readers.records import Message
from niels_gpt.evaluation.questions import CHOICES, group_questions, mark_answers, open_questions
from niels_gpt.evaluation.scoring import COLUMNS, MISSES, NATS, NO_TARGET, TOKENS, Sums, score_windows
from niels_gpt.generation.generate import generate
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TURN, BytesTokenizer

BYTE = BytesTokenizer()
CFG = ModelCfg(V=256, T=64, C=64, L=1, H=2, d_ff=128)


def test_marks_are_chance_before_training_and_those_of_generation_after_it() -> None:
    """The model learns half of the questions: what it says to them, greedily, is counted."""
    text, chance = open_questions("synthetic")
    torch.manual_seed(0)
    model = GPT(CFG)  # its head is zero: no question changes the probability of an answer

    def score() -> tuple[dict[str, int], Sums]:
        return mark_answers(score_windows(model, BYTE, text.cut(BYTE, CFG.T), text.units))

    untrained, right = score()
    count = len(right)
    assert untrained == {"exact": 0, "chosen": chance["chosen"]} and chance["chosen"] == count / CHOICES > 9
    per_group = [
        [*pairs] for _, pairs in groupby(text.cut(BYTE, CFG.T), lambda w: int(w.units.max()) // CHOICES**2)
    ]
    windows = [group[n] for group in per_group for n in range(0, CHOICES**2, CHOICES + 1)]
    assert [int((w.units != NO_TARGET).sum()) for w in windows] == right[:, TOKENS].tolist()
    ids, units = (pad_sequence([torch.from_numpy(w[n]) for w in windows[::2]], True, -1) for n in (0, 1))
    targets = ids.where(units != NO_TARGET, IGNORE)[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    for _ in range(60):
        loss = model.train().loss(ids[:, :-1].clamp(min=0), targets, float((targets != IGNORE).sum()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained, _ = score()
    said = 0
    for window in windows:
        asked = int((window.units == NO_TARGET).sum())
        prompt, answer = window.ids[:asked].tolist(), window.ids[asked:-1].tolist()
        stop = [BYTE.special[END_OF_TURN]]
        said += [*generate(model, prompt, len(answer) + 1, stop=stop, temperature=0)] == answer
    assert 2 * chance["exact"] < trained["exact"] == said < count
    assert trained["chosen"] > 2 * chance["chosen"]


def test_an_answer_that_is_likely_after_any_question_is_not_chosen_for_that() -> None:
    sums = np.ones((2, CHOICES, CHOICES, len(COLUMNS)))  # (groups, question, answer, column)
    sums[..., NATS] = [5, 10, 20, 1] - np.eye(CHOICES)
    sums[1, 1, 1, NATS] = 12  # this question makes its answer less likely
    sums[0, 2, 2, MISSES] = sums[1, 0, 1, MISSES] = 0  # the second is no pair of a question with its own answer
    marks, right = mark_answers(sums.reshape(-1, len(COLUMNS)))
    assert marks == {"exact": 1, "chosen": 7} and right[:, NATS].tolist() == [4, 9, 19, 0, 4, 12, 19, 0]


def test_the_answers_of_a_group_differ_and_its_questions_are_alike() -> None:
    asked = [("What is it?", "a"), ("Who is that?", "x"), ("What is that?", "a"), ("What was it?", "b")]
    asked += [("What is it now?", "y"), ("What was that?", "c"), ("What will be?", "d"), ("What is there?", "e")]
    (group,) = group_questions([(Message("user", q), Message("assistant", a)) for q, a in asked])
    assert [f"{q.content} {a.content}" for q, a in group] == [
        "What is it? a", "What was it? b", "What was that? c", "What will be? d",
    ]  # fmt: skip
