"""F19, F20: a number that is not finite is found before it spoils the weights, and where it came up is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Run, same
from support.processes import cli

from faults.scale import scaled
from niels_gpt.errors import NonFiniteError
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import save_step
from train.loop import steps
from train.loop.evaluate import ValLoss
from train.loop.steps import optimizer_step

SETTINGS = ["train.total_steps=6", "train.ckpt_every=1", "train.accum_steps=3", "model.dropout=0.1"]
NAMES = [
    "embedding", "blocks.0.attention_norm", "blocks.0.attention.q_proj", "blocks.0.attention.o_proj",
    "blocks.0.feed_forward_norm", "blocks.0.feed_forward.down_proj", "blocks.1.attention.k_proj",
    "blocks.1.attention.v_proj", "blocks.1.feed_forward.up_proj", "blocks.1.feed_forward.gate_proj", "norm",
]  # fmt: skip
KINDS = ("weight", "output", "gradient")
PLACE = "in microbatch 2 of 3, sequences 40 to 43 of the run; "
SAID = {
    "weight": "first non-finite value in weight {name}.weight, before the step; ",
    "output": "first non-finite value in the output of {name} " + PLACE,
    "gradient": "first non-finite value in the gradient of {name}.weight " + PLACE,
}


@contextmanager
def poisoned(kind: str, name: str, value: float) -> Iterator[None]:
    """Spoil a module of the model in the second microbatch of the fourth step, and whenever that is repeated."""

    passes = count()

    def spoil(forward: Any, *inputs: Any) -> Any:
        output = forward(*inputs)
        if kind == "weight" or next(passes) % 3 != 1:
            return output
        if kind == "gradient":
            output.register_hook(lambda gradient: gradient * value)
        return output * value if kind == "output" else output

    def step(state: Any, *rest: Any) -> Any:
        if state.step == 3:
            module = state.model.get_submodule(name)
            vars(module)["forward"] = partial(spoil, module.forward)
            if kind == "weight":
                torch.nn.init.constant_(module.weight, value)
        return optimizer_step(state, *rest)

    with mock.patch("train.loop.steps.optimizer_step", step):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_found_before_the_update_and_named(
    run_folder: Run, tmp_path: Path, kind: str
) -> None:
    names = NAMES[:: scaled(5, 1)]
    straight = run_folder(*SETTINGS, name="straight") / "pretrain"
    for number, name in enumerate(names):
        value = (float("nan"), float("inf"))[number % 2]
        with poisoned(kind, name, value), pytest.raises(NonFiniteError) as caught:
            run_folder(*SETTINGS, name=f"run{number}")
        said = str(caught.value)
        assert said.startswith("step 4: loss ") and said.endswith("; the weights are unchanged")
        assert SAID[kind].format(name=name) in said, said
        for word in ("train.base_lr", "precision=off", "bf16"):
            assert word in caught.value.hint
        assert caught.value.exit_code == 5
        folder = tmp_path / f"run{number}" / "pretrain"
        assert read_checkpoint(folder / "latest.pt")["step"] == 3
    resumed = run_folder(*SETTINGS, name="run0") / "pretrain"
    assert same(*(read_checkpoint(path / "latest.pt")["model_state"] for path in (straight, resumed)))


def test_a_validation_loss_that_is_not_finite_is_an_error_and_no_best(run_folder: Run, tmp_path: Path) -> None:
    with (
        mock.patch("train.loop.steps.evaluate", return_value=ValLoss(float("nan"), {})),
        pytest.raises(NonFiniteError) as caught,
    ):
        run_folder(*SETTINGS)
    assert str(caught.value) == "step 2: the validation loss is nan"
    assert not (tmp_path / "run" / "pretrain" / "best.pt").exists()


def poison_at_the_save() -> None:
    def spoilt(folder: Path, state: Any, *args: Any, **kwargs: Any) -> None:
        if state.step == 4:
            with torch.no_grad():
                state.model.blocks[1].attention.o_proj.weight[0, 0] = float("inf")
        save_step(folder, state, *args, **kwargs)

    vars(steps)["save_step"] = spoilt


def test_weights_that_are_not_finite_at_a_save_are_not_saved(tmp_path: Path) -> None:
    done = cli("experiment=smoke_pretrain", *SETTINGS, cwd=tmp_path, before=poison_at_the_save)
    weight = "blocks.1.attention.o_proj.weight"
    assert done.returncode == 5
    assert f"error: weight {weight} is not finite at step 4; no checkpoint was written" in done.stderr
    assert "\nhint: resume from the last checkpoint, which is intact, with a lower train.base_lr" in done.stderr
    assert read_checkpoint(tmp_path / "runs" / "smoke_pretrain" / "pretrain" / "latest.pt")["step"] == 3
