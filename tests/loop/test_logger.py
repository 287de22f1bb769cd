"""Mean losses, and curves that are drawn at each evaluation and at a stop, never before the first line."""

import json
import sys
from typing import Any

import pytest
from conftest import Plan, Run, carry_out, metrics, stopped_after
from matplotlib.figure import Figure
from test_promises import recorded_steps

from niels_gpt.errors import Interrupted
from train.loop.logger import RunLogger, smooth


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep every figure that is drawn."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *rest: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *rest, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def last_steps(figures: list[Figure]) -> list[int]:
    """Return the last step in each figure."""
    lines: list[Any] = [figure.axes[0].lines[:3] for figure in figures]
    return [max(step for line in of_one for step in line.get_xdata()) for of_one in lines]


@pytest.fixture
def run_folder(plan: Plan) -> Run:
    """Carry out a smoke experiment with its curves, which the other tests leave out."""
    return lambda *overrides: carry_out(plan(*overrides))


@pytest.fixture(autouse=True)
def _as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.logger.DRAW_SHARE", float("inf"))


def test_a_line_has_the_mean_loss_since_the_line_before(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="niels_gpt"), recorded_steps() as steps:
        folder = run_folder("train.total_steps=7", "train.log_every=3")
    losses, norms = ([step[at].item() for step in steps] for at in (1, 2))
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    logged = [event for event in metrics(folder / "pretrain") if event["event"] == "train"]
    assert [event["loss"] for event in logged] == pytest.approx(means, rel=1e-6)
    assert [event["grad_norm"] for event in logged] == [norms[2], norms[5], norms[6]]
    for step, event in zip((3, 6, 7), logged, strict=True):
        assert any(line.startswith(f"step {step}/7  loss {event['loss']:.4f}  ") for line in caplog.messages)
    (result,) = json.loads((folder / "result.json").read_text())["phases"]
    val = metrics(folder / "pretrain")[-1]
    to_bits = result["unigram_bits_per_byte"] / result["unigram_loss"]
    assert (val["event"], val["bits_per_byte"]) == ("val", pytest.approx(val["loss"] * to_bits))


def test_curves_are_drawn_at_each_evaluation_and_at_the_end(run_folder: Run, drawn: list[Figure]) -> None:
    folder = run_folder("train.total_steps=7", "train.eval_every=2")
    assert last_steps(drawn) == [2, 4, 6, 7]
    assert (folder / "pretrain" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_at_a_stop(run_folder: Run, drawn: list[Figure]) -> None:
    with stopped_after(3), pytest.raises(Interrupted):
        run_folder("train.total_steps=7", "train.eval_every=7")
    assert last_steps(drawn) == [3]


def test_drawing_takes_a_small_share_of_the_time(
    run_folder: Run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.loop.logger.DRAW_SHARE", 1e-6)
    run_folder("train.total_steps=7", "train.eval_every=2")
    assert last_steps(drawn) == [2, 7]


def test_matplotlib_is_imported_after_the_first_line(run_folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    imported: dict[int, bool] = {}
    advance = RunLogger.advance

    def note(logger: RunLogger, step: int) -> None:
        imported[step] = "matplotlib.figure" in sys.modules
        advance(logger, step)

    monkeypatch.setattr(RunLogger, "advance", note)
    run_folder("train.total_steps=6", "train.eval_every=1", "train.log_every=3")
    assert [step for step in imported if imported[step]] == [3, 4, 5, 6]


def test_a_picture_has_the_learning_rate_below_and_a_smoothed_line(run_folder: Run, drawn: list[Figure]) -> None:
    folder = run_folder("train.total_steps=40", "train.eval_every=40") / "pretrain"
    train = [event for event in metrics(folder) if event["event"] == "train"]
    losses: Any
    rates: Any
    losses, rates = (axes.lines for axes in drawn[-1].axes)
    labels = {line.get_label(): list(line.get_ydata()) for line in losses}
    assert labels["train"] == [event["loss"] for event in train]
    assert labels["train, smoothed"] == smooth(labels["train"]) != labels["train"]
    assert [list(line.get_ydata()) for line in rates] == [[event["lr"] for event in train]]


def test_a_damaged_line_of_the_metrics_is_not_drawn(run_folder: Run, drawn: list[Figure]) -> None:
    folder = run_folder("train.total_steps=2") / "pretrain"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 2}\n{"event": "train", "step": 2, "loss": 5.0}\n')
    drawn.clear()
    run_folder("train.total_steps=4")
    assert last_steps(drawn) == [4]


def test_smoothing_keeps_a_constant_and_a_straight_start() -> None:
    assert smooth([2.0] * 50) == [2.0] * 50
    assert smooth([float(n) for n in range(100)])[:90] == [float(n) for n in range(90)]
    assert smooth([]) == []
