"""train.ema keeps an average of the weights in each checkpoint, exact through stops, and changes nothing else."""

from pathlib import Path

import pytest
import torch
from conftest import Run, final, same, stopped_after
from torch import Tensor

from niels_gpt.errors import CheckpointError, Interrupted
from niels_gpt.weights.checkpoint import read_checkpoint

EVERY = ("train.total_steps=6", "train.ckpt_every=1", "train.keep_last=9", "model.dropout=0.2")


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("memory", ["off", "ckpt"])
def test_a_run_that_was_stopped_has_the_average_of_the_weights_after_each_step(
    run_folder: Run, memory: str, optim: str
) -> None:
    own = (*EVERY, f"optim={optim}", f"memory={memory}")
    with stopped_after(3), pytest.raises(Interrupted):
        run_folder(*own, "train.ema=0.3", name="stopped")
    averaged = run_folder(*own, "train.ema=0.3", name="stopped") / "pretrain"
    straight = run_folder(*own, "train.ema=0.3", name="straight") / "pretrain"
    assert same(final(averaged), final(straight))
    expected: dict[str, Tensor] = {}
    for n in range(6):
        weights = read_checkpoint(averaged / f"step_{n + 1:07d}.pt")["model_state"]
        share = max(0.7, 9 / (10 + n))
        expected = {name: torch.lerp(expected.get(name, w), w, share) for name, w in weights.items()}
    *others, average = final(averaged)["optimizer_state"]["parts"]
    assert [entry["ema"].shape for entry in average["state"].values()] == [w.shape for w in expected.values()]
    for entry, mean in zip(average["state"].values(), expected.values(), strict=True):
        torch.testing.assert_close(entry["ema"], mean)
    alone = final(run_folder(*own, name="alone") / "pretrain")
    assert same(alone["model_state"], final(averaged)["model_state"])
    assert same(alone["optimizer_state"], others[0] if optim == "adamw" else {"parts": others})


def test_another_split_of_the_steps_changes_the_average_by_rounding_alone(run_folder: Run) -> None:
    averages = []
    for B, accum_steps in ((8, 1), (2, 4)):
        split = (f"train.B={B}", f"train.accum_steps={accum_steps}", "optim=adamw", "train.grad_clip=1e9")
        folder = run_folder(*split, "train.ema=0.9", "train.total_steps=3", name=f"B{B}")
        averages.append(final(folder / "pretrain")["optimizer_state"]["parts"][-1]["state"])
    for first, second in zip(*(average.values() for average in averages), strict=True):
        torch.testing.assert_close(first["ema"], second["ema"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("then", "now"), [("null", "0.9"), ("0.9", "null"), ("0.9", "0.99")])
def test_a_run_does_not_go_on_with_another_average(run_folder: Run, tmp_path: Path, then: str, now: str) -> None:
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*EVERY, f"train.ema={then}")
    if then == "null":  # as a checkpoint of an older version
        for path in (tmp_path / "run" / "pretrain").glob("*.pt"):
            saved = read_checkpoint(path)
            saved["train_cfg"].pop("ema", None)
            torch.save(saved, path)
    with pytest.raises(CheckpointError, match=f"its ema is {then}, but this run's is {now}"):
        run_folder(*EVERY, f"train.ema={now}")
