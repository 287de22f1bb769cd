"""metrics.jsonl has each event once, whatever happened to the run before."""

import json
from pathlib import Path

import pytest
from torch.optim import SGD

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from train.artifacts.checkpointing import TrainState
from train.artifacts.metrics import read_metrics
from train.loop.baseline import UnigramBaseline
from train.loop.evaluate import ValLoss
from train.loop.logger import RunLogger

MEASURE = UnigramBaseline(unigram_loss=6.0, bytes_per_target=4.0)


def state(step: int = 0) -> TrainState:
    """After so many steps of 8 sequences of 8 tokens."""
    model = GPT(ModelCfg(V=256, T=8, C=4, L=1, H=1, d_ff=4, tie_embeddings=True))
    return TrainState(model, SGD(model.parameters()), step=step, sequences=8 * step)


def report(out: Path, step: int = 0) -> RunLogger:
    return RunLogger(out, 10, state(step), MEASURE)


LOSS = ValLoss(2.0, {"synthetic": 2.0})


def test_an_event_says_what_was_measured(tmp_path: Path) -> None:
    logger = report(tmp_path)
    logger.log_step(state(1), 2.5, 1e-3, 0.5)
    logger.log_evaluation(state(1), LOSS)
    train, val = read_metrics(tmp_path / "metrics.jsonl")
    assert {key: train[key] for key in ("event", "step", "loss", "lr", "grad_norm", "tokens")} == {
        "event": "train", "step": 1, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens": 64,
    }  # fmt: skip
    assert train["tokens_per_second"] > 0 and train["memory"] > 1 << 20
    assert val["bits_per_byte"] == pytest.approx(2.0 / 0.6931471805599453 / 4.0)


def test_events_after_the_resumed_step_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    logger = report(tmp_path)
    for step in range(1, 6):
        logger.log_step(state(step), float(step), 1e-3, 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    resumed = report(tmp_path, step=3)
    resumed.log_step(state(4), 4.0, 1e-3, 0.5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_curves_are_drawn_from_what_was_measured(tmp_path: Path) -> None:
    logger = report(tmp_path)
    logger.log_step(state(1), 2.5, 1e-3, 0.5)
    logger.log_evaluation(state(1), LOSS)
    logger.draw_curves()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
