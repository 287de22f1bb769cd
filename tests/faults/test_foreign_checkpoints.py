"""Checkpoints from others: what they ask for is looked at before memory is taken, or a kernel trusts them."""

import shutil
import sys
from collections.abc import Callable
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from support.processes import cli, limit_memory

from faults.folders import TINY
from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.paths import step_path

Saved = dict[str, Any]
RUN = (*TINY, "train.total_steps=2", "train.ckpt_every=2", "train.eval_every=2")
ROOM = 512 << 20  # bytes
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and RLIMIT_AS")
WIDE: Saved = {"V": 1 << 20, "C": 1 << 20, "L": 1024, "H": 1024, "d_ff": 1 << 24}


def asking(saved: Saved, **changes: Any) -> Saved:
    """Let the settings ask for another model than the weights are of."""
    return saved | {"model_cfg": saved["model_cfg"] | changes}


def repeating(saved: Saved) -> Saved:
    """Let the settings ask for a wide model, and weights of its shapes repeat one number."""
    state = {name: torch.zeros(1).expand([n << 16 for n in t.shape]) for name, t in saved["model_state"].items()}
    return asking(saved, V=256 << 16, C=16 << 16, d_ff=16 << 16) | {"model_state": state}


def averaging(average: Any, saved: Saved) -> Saved:
    """Let the optimizer have these averages of its first weight."""
    return saved | {"optimizer_state": {"state": {0: {"exp_avg": average}}, "param_groups": []}}


START: Any = 0.5
LISTS = reduce(lambda inner, _: [inner, inner], range(64), START)  # 2**64 numbers in a few bytes
LARGER = "its tensors are larger than the file"
ENORMOUS: dict[str, tuple[Callable[[Saved], Saved], str]] = {
    "more layers than can be asked for": (partial(asking, L=10**6), "model_cfg.L cannot be used"),
    "wide": (partial(asking, **WIDE), "fit its model_cfg: embedding.weight is 256 x 16, not"),
    "long": (partial(asking, T=1 << 24), "model_cfg cannot be used (Value error, T=16777216 times"),
    "repeated weights": (repeating, LARGER),
    "repeated averages": (
        partial(averaging, torch.zeros(1).expand(1 << 22, 1 << 22)),
        "its tensors are larger than the file",
    ),
    "unfolding averages": (partial(averaging, LISTS), LARGER),
}


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("how", ENORMOUS)
def test_a_checkpoint_that_asks_for_too_much_memory_is_refused_before_any_is_taken(
    how: str, run_folder: Run, tmp_path: Path
) -> None:
    best = run_folder(*RUN) / "pretrain" / "best.pt"
    change, reason = ENORMOUS[how]
    torch.save(change(read_checkpoint(best)), best)
    done = cli(str(best), "--prompt", "a", cwd=tmp_path, script="sample", before=partial(limit_memory, ROOM))
    assert done.returncode == 4 and done.stderr.startswith(f"error: {best}: ") and "\nhint: " in done.stderr
    assert reason in done.stderr and "Traceback" not in done.stderr


@LINUX
@pytest.mark.slow
def test_a_run_does_not_start_from_it_either(run_folder: Run, tmp_path: Path, cache_dir: Path) -> None:
    best = run_folder(*RUN) / "pretrain" / "best.pt"
    torch.save(asking(read_checkpoint(best), **WIDE), best)
    own = ["experiment=smoke_pretrain", *RUN, f"data.cache_dir={cache_dir}", "name=own"]
    for asked in ("init_from", "resume"):
        done = cli(*own, f"{asked}={best}", cwd=tmp_path, before=partial(limit_memory, ROOM))
        assert done.returncode == 4 and f"error: {best}: its model_state does not fit" in done.stderr, done.stderr


def test_a_run_does_not_go_on_from_it_either(run_folder: Run) -> None:
    with pytest.raises(CheckpointError, match=r"step_0000002\.pt: its model_state does not fit its model_cfg"):
        going_on(run_folder, lambda saved: asking(saved, **WIDE))


SPOILT: dict[str, Callable[[torch.Tensor], Any]] = {
    "another shape": lambda average: torch.zeros(3),
    "one number": lambda average: torch.zeros(()),
    "transposed": lambda average: average.T,
    "one number repeated": lambda average: torch.zeros(1).expand(average.shape),
    "sparse": lambda average: average.to_sparse(),
    "text": lambda average: "x",
}


@pytest.mark.parametrize(
    ("optim", "at", "name"), [("adamw", (), "exp_avg"), ("muon", ("parts", 1), "momentum_buffer")]
)
def test_averages_that_are_not_as_their_weights_are_refused(
    optim: str, at: tuple[Any, ...], name: str, run_folder: Run
) -> None:
    """A fused kernel takes their size for granted, and would read and write beyond them."""

    def spoil(how: Callable[[torch.Tensor], Any], saved: Saved) -> Saved:
        kept = reduce(getitem, at, saved["optimizer_state"])["state"][0]
        kept[name] = how(kept[name])
        return saved

    for how in SPOILT.values():
        with pytest.raises(CheckpointError, match=r"step_0000002\.pt: its optimizer_state does not fit its model"):
            going_on(run_folder, partial(spoil, how), f"optim={optim}")


def going_on(run_folder: Run, change: Callable[[Saved], Saved], *settings: str) -> Path:
    """Train two steps, change the checkpoint of the second, go on from it."""
    phase = run_folder(*RUN, *settings) / "pretrain"
    saved = change(read_checkpoint(phase / "latest.pt"))
    shutil.rmtree(phase)
    phase.mkdir()
    torch.save(saved, step_path(phase, 2))
    return run_folder(*RUN, *settings, "train.total_steps=4")
