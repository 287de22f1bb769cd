"""Warnings in words: of what goes wrong, once in a phase, and of nothing else; they change nothing."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
from conftest import Run, final, metrics, same, stopped_after

from niels_gpt.errors import Interrupted
from train.report.diagnosis import Diagnosis, warn_of_repetition

Event = dict[str, Any]
STEPS = 400
TINY_TEXT = (
    *("data=text", "data.files=tiny.txt", "data.val_fraction=0.2", "model.V=512", "model.C=64", "model.T=64"),
    *("train.B=4", "train.accum_steps=1", "train.total_steps=70", "train.eval_every=10", "train.log_every=5"),
)


def line(step: int, loss: float = 3.0, grad_norm: float = 0.6, tokens_per_second: float = 5000.0) -> Event:
    numbers = {"loss": loss, "grad_norm": grad_norm, "tokens_per_second": tokens_per_second}
    return {"event": "train", "step": step, "tokens": 10_000 * step} | numbers


def evaluation(step: int, loss: float) -> Event:
    return {"event": "val", "step": step, "loss": loss}


def diagnose(*events: Event) -> dict[str, str]:
    """Return the warnings, by kind, of a phase of 400 steps whose unigram model has a loss of 5."""
    diagnosis = Diagnosis(STEPS, 5.0)
    said = [warning for event in events for warning in diagnosis.add(event)]
    assert said == list(diagnosis.warnings.values()), "each is said once"
    return diagnosis.warnings


def losses(*pairs: tuple[float, float]) -> Iterator[Event]:
    """Yield lines of a training loss and the evaluation after them, every 20 steps."""
    for step, (train, val) in zip(count(20, 20), pairs, strict=False):
        yield from (line(step - 10, train), line(step, train), evaluation(step, val))


def test_overfitting_is_named_with_its_step() -> None:
    fall = [(4.0, 4.0), (3.0, 3.5)]
    rise = [(2.5, 3.7), (2.0, 3.9), (1.5, 4.1)]
    warnings = diagnose(*losses(*fall, *rise))
    assert warnings.keys() == {"overfitting"}
    assert warnings["overfitting"].startswith(
        "overfitting since step 40: the validation loss has risen from 3.50 to 3.90, while the training loss has "
        "fallen from 3.50 to 2.25; stop in time with train.patience=3"
    )
    assert not diagnose(*losses(*fall, (2.5, 3.7), (2.0, 3.4))), "a bump"
    assert not diagnose(*losses(*fall, (2.9, 3.51), (2.8, 3.52), (2.7, 3.51))), "a plateau"
    assert not diagnose(*losses(*fall, (3.5, 3.7), (3.5, 3.9), (3.5, 4.1))), "both rise"


def test_a_loss_no_better_than_the_unigram_models_is_named_after_half_of_the_steps() -> None:
    assert not diagnose(evaluation(100, 5.1)), "early"
    assert (
        "no validation loss up to step 200 is clearly below the unigram's 5.00"
        in (diagnose(evaluation(100, 5.1), evaluation(200, 4.95))["flat"])
    )
    assert not diagnose(evaluation(100, 4.5), evaluation(200, 5.5)), "it has learned something, and forgotten it"


def test_an_exploding_gradient_is_named_and_a_spike_is_not() -> None:
    before = [line(step) for step in range(10, 110, 10)]
    spike, more = line(110, grad_norm=30.0), line(120, grad_norm=80.0)
    assert not diagnose(*before, spike, line(120))
    warning = diagnose(*before, spike, more)["gradient"]
    assert warning.startswith("the gradient norm has risen from 0.6 to 80 at step 120; lower train.base_lr")


def test_a_speed_that_stays_halved_is_named() -> None:
    usual = [line(1, tokens_per_second=20_000.0), *(line(step) for step in range(2, 14))]
    slow = [line(step, tokens_per_second=400.0) for step in range(14, 18)]  # 25 s each
    evaluations = [line(step, tokens_per_second=100.0) for step in (14, 15)]  # in whose time they lie
    assert not diagnose(*usual, *evaluations, line(16), *evaluations)
    assert not diagnose(*usual, *(line(step, tokens_per_second=2000.0) for step in range(14, 20))), "5 s each"
    assert diagnose(*usual, *slow)["speed"].startswith(
        "400 tokens/s, 5,000 until 1 min 15 s ago (step 16); heat, swapping or other programs slow it down"
    )


def test_text_that_is_repeated_too_often_is_named() -> None:
    assert warn_of_repetition([("books", 3.9), ("notes", 0.2)]) is None
    assert (warn_of_repetition([("books", 3.9), ("notes", 50.0)]) or "").startswith(
        "the text is repeated (notes 50 times); after about 4 times"
    )


def test_an_event_that_is_damaged_is_left_out() -> None:
    events: list[Event] = [{"event": "train", "step": 3, "loss": 4.0}, {"event": "val", "step": 3, "loss": None}]
    assert not diagnose(*events, {"event": "other", "step": 4}, evaluation(200, float("nan")))


@pytest.fixture
def tiny_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = Random(1).choices
    lines = (" ".join(draw([f"w{n}" for n in range(300)], k=12)) for _ in range(60))
    Path("tiny.txt").write_text("\n\n".join(lines))


def test_a_run_on_little_text_is_warned_of_once_also_when_it_is_resumed(
    run_folder: Run, tiny_text: None, caplog: pytest.LogCaptureFixture
) -> None:
    with stopped_after(35), pytest.raises(Interrupted):
        run_folder(*TINY_TEXT)
    before = [text for text in caplog.messages if text.startswith("warning: pretrain: ")]
    assert [text.split(" ")[2:4] for text in before] == [["the", "text"], ["overfitting", "since"]]
    caplog.clear()
    run_folder(*TINY_TEXT)
    assert not [text for text in caplog.messages if "overfitting" in text or "repeated" in text]


def test_a_warning_and_its_failure_change_nothing(
    run_folder: Run, tiny_text: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 9."""
    warned = run_folder(*TINY_TEXT, name="warned")
    assert "overfitting since step" in caplog.text
    with mock.patch.object(Diagnosis, "add", side_effect=ValueError("a fault")):
        failed = run_folder(*TINY_TEXT, name="failed")
    assert caplog.messages.count("warning: an observer failed (a fault); continuing without it") == 1
    assert same(final(warned / "pretrain"), final(failed / "pretrain"))
    assert metrics(warned / "pretrain") == metrics(failed / "pretrain")
