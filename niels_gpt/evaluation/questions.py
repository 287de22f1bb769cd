"""Ask questions with known answers, from data that comes with niels_gpt and is held out of training on it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from niels_gpt.config import DataCfg, SourceCfg, SourceKind
from niels_gpt.data.readers.records import Dialogue, Message
from niels_gpt.data.validation_split import plan_split, read_split
from niels_gpt.evaluation.scoring import MISSES, NATS, Sums
from niels_gpt.evaluation.texts import TextSet, make_dialogue_set
from niels_gpt.seeds import derive_seed

CHOICES = 4  # answers to choose from: those of a group of questions of one form
MOST = 100  # groups
SOURCES: tuple[SourceKind, ...] = ("synthetic", "pydocs")
Pair = tuple[Message, Message]


def open_questions(kind: SourceKind) -> tuple[TextSet, dict[str, int]]:
    """Return the questions that begin the dialogues in the default validation split, and what chance gives.

    The units of the set are all pairs (group, question, answer) within each group, for `mark_answers`. By chance,
    a model chooses 1 of CHOICES; it is exact where the commonest answer is right.
    """
    source, found = SourceCfg(kind=kind), dict[str, Pair]()
    plan = plan_split(source, "dialogues", DataCfg.model_fields["val_fraction"].default)
    for split, record in read_split(source, "dialogues", plan):
        if split == "val" and isinstance(record, Dialogue):
            question, answer = [message for message in record.messages if message.role != "system"][:2]
            found[question.content] = question, answer
    groups = group_questions([found[key] for key in sorted(found, key=lambda key: derive_seed("question", key))])
    answers = Counter(answer for group in groups for _, answer in group)
    chance = {"exact": max(answers.values()), "chosen": len(groups)}
    pairs = [Dialogue("", (question, answer)) for group in groups for question, _ in group for _, answer in group]
    about = f"questions: {answers.total()}, by chance {chance['exact']} exact and {chance['chosen']} chosen"
    return make_dialogue_set(f"{kind}, held out", about, pairs), chance


def group_questions(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return at most MOST groups of CHOICES questions with different answers, of one form each.

    The form of a question is its first word and its number of words.
    """
    waiting: dict[tuple[str, int], dict[str, Pair]] = {}
    groups = []
    for question, answer in pairs:
        words = question.content.split()
        group = waiting.setdefault((words[0], len(words)), {})
        group.setdefault(answer.content, (question, answer))
        if len(group) == CHOICES:
            groups.append([*group.values()])
            group.clear()
    return groups[:MOST]


def mark_answers(sums: Sums) -> tuple[dict[str, int], Sums]:
    """Return how many questions get their answer, by the sums of all pairs, and the sums of the right pairs.

    `exact` counts those whose greedy answer is the right one: each of its tokens is the likeliest after those
    before it. `chosen` counts those that raise the probability of their own answer more than that of the group's
    other answers, over the mean of the group's questions: some answers are likelier than others whatever the
    question (pointwise mutual information, as in Holtzman et al., Surface Form Competition, 2021).
    """
    grid = sums.reshape(-1, CHOICES, CHOICES, sums.shape[-1])  # (groups, question, answer, column)
    each = np.arange(CHOICES)
    right = grid[:, each, each].reshape(-1, sums.shape[-1])
    chosen = (grid[..., NATS] - grid[..., NATS].mean(1, keepdims=True)).argmin(2)
    return {"exact": int((right[:, MISSES] == 0).sum()), "chosen": int((chosen == each).sum())}, right
