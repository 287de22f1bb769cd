"""Each setting draws from the tokens, and with the chances, that its definition gives."""

from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from niels_gpt.generation.generate import draw_token
from niels_gpt.generation.sampling import Sampling

LOGITS = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()  # of the tokens 0 to 4


def draw(seen: list[int] | None = None, logits: torch.Tensor = LOGITS, **settings: Any) -> Counter[int]:
    sampling = Sampling(**{"temperature": 1.0} | settings)
    random = torch.Generator().manual_seed(sampling.seed)
    return Counter(draw_token(logits, seen or [], sampling, random) for _ in range(2000))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 0}, {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        ({"top_k": 2}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.6}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.7}, {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        ({"top_p": 1e-9}, {1: 1.0}),
        ({"top_k": 3, "top_p": 0.75}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),  # of the chances that top-k leaves
        ({"min_p": 0.55}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"min_p": 1.0}, {1: 1.0}),
        ({"temperature": 0.5}, {0: 0.01, 1: 0.16, 2: 0.0025, 3: 0.0625, 4: 0.04}),  # over their sum
        ({"temperature": 0.5, "min_p": 0.3}, {1: 0.16, 3: 0.0625}),  # it sees what temperature leaves
        ({"temperature": 0}, {1: 1.0}),
    ],
)
def test_tokens_have_the_chances_of_the_definition(settings: dict[str, Any], expected: dict[int, float]) -> None:
    drawn, total = draw(**settings), sum(expected.values())
    assert drawn.keys() == expected.keys()
    for token, chance in expected.items():
        assert drawn[token] / 2000 == pytest.approx(chance / total, abs=0.04)


def test_a_penalty_makes_what_was_there_less_likely_whatever_its_sign() -> None:
    logits = torch.tensor([2.0, 1.5, -1.0, -1.1])
    assert (
        draw(logits=logits, temperature=0) == draw([3], logits, temperature=0, repetition_penalty=1.3) == {0: 2000}
    )
    assert draw([0, 0], logits, temperature=0, repetition_penalty=1.4) == {1: 2000}
    assert draw([0, 1], logits - 3, temperature=0, repetition_penalty=9.0) == {2: 2000}
    assert logits[0] == 2.0, "the logits stay as they were"


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"seed": -1},
        {"seed": 1 << 64},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"stop": "a" * 257},
        {"stop": [1]},
        {"alternatives": 21},
        {"beams": 2},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**bad)


def test_a_stop_text_may_stand_alone_or_in_a_list() -> None:
    assert Sampling(stop="a").stop == ("a",) and Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
