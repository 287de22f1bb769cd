"""F19, F20, F30 to F33: numbers that are not finite, time and memory that run out, clocks that jump."""

import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Plan, Run, final, metrics, same
from support.processes import cli, limit_memory

from faults.folders import require_equal
from faults.scale import scaled
from niels_gpt.errors import NonFiniteError, OutOfMemory, TimeIsUp
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import save_step
from train.artifacts.metrics import read_metrics
from train.artifacts.results import read_results
from train.hardware.out_of_memory import explain_out_of_memory
from train.loop.evaluate import ValLoss
from train.loop.steps import optimizer_step
from train.run import time_limit
from train.run.time_limit import TimeLimit

POISONED = ["train.total_steps=6", "train.ckpt_every=1", "train.accum_steps=3", "model.dropout=0.1"]
NAMES = [
    "embedding", "blocks.0.attention_norm", "blocks.0.attention.q_proj", "blocks.0.attention.o_proj",
    "blocks.0.feed_forward_norm", "blocks.0.feed_forward.down_proj", "blocks.1.attention.k_proj",
    "blocks.1.attention.v_proj", "blocks.1.feed_forward.up_proj", "blocks.1.feed_forward.gate_proj", "norm",
]  # fmt: skip
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


@pytest.mark.parametrize("kind", SAID)
def test_what_is_not_finite_is_found_before_the_update_and_named(
    run_folder: Run, tmp_path: Path, kind: str
) -> None:
    straight = run_folder(*POISONED, name="straight")
    for number, name in enumerate(NAMES[:: scaled(5, 1)]):
        value = (float("nan"), float("inf"))[number % 2]
        with poisoned(kind, name, value), pytest.raises(NonFiniteError) as caught:
            run_folder(*POISONED, name=f"run{number}")
        said = str(caught.value)
        assert said.startswith("step 4: loss ") and said.endswith("; the weights are unchanged")
        assert SAID[kind].format(name=name) in said, said
        assert all(word in caught.value.hint for word in ("train.base_lr", "precision=off", "bf16"))
        assert caught.value.exit_code == 5
        assert read_checkpoint(tmp_path / f"run{number}" / "pretrain" / "latest.pt")["step"] == 3
    require_equal(run_folder(*POISONED, name="run0"), straight)


def test_a_validation_loss_that_is_not_finite_is_an_error_and_no_best(run_folder: Run, tmp_path: Path) -> None:
    nan = ValLoss(float("nan"), {})
    with mock.patch("train.loop.steps.evaluate", return_value=nan):
        with pytest.raises(NonFiniteError, match="^step 2: the validation loss is nan$"):
            run_folder(*POISONED)
    assert not (tmp_path / "run" / "pretrain" / "best.pt").exists()


def test_weights_that_are_not_finite_at_a_save_are_not_saved(run_folder: Run, tmp_path: Path) -> None:
    def spoil(folder: Path, state: Any, *args: Any, **kwargs: Any) -> None:
        if state.step == 4:
            state.model.blocks[1].attention.o_proj.weight.data[0, 0] = float("inf")
        save_step(folder, state, *args, **kwargs)

    with mock.patch("train.loop.steps.save_step", spoil), pytest.raises(NonFiniteError) as caught:
        run_folder(*POISONED)
    weight = "blocks.1.attention.o_proj.weight"
    assert str(caught.value) == f"weight {weight} is not finite at step 4; no checkpoint was written"
    assert "resume from the last checkpoint, which is intact" in caught.value.hint
    assert read_checkpoint(tmp_path / "run" / "pretrain" / "latest.pt")["step"] == 3


SETTINGS = ["train.total_steps=9", "train.ckpt_every=4", "train.eval_every=3", "model.dropout=0.1"]


def trained(folder: Path) -> list[Any]:
    return [final(folder), metrics(folder)]


def test_a_limit_of_time_counts_over_resumes_and_what_goes_on_is_exact(run_folder: Run, tmp_path: Path) -> None:
    """F30."""
    straight = trained(run_folder(*SETTINGS, name="straight") / "pretrain")
    folder = tmp_path / "run" / "pretrain"
    now = [1000.0]

    def take_half_a_minute(*args: Any) -> Any:
        now[0] += 30.0
        return optimizer_step(*args)

    clock = mock.patch.object(time_limit, "time", mock.Mock(monotonic=lambda: now[0]))
    with clock, mock.patch("train.loop.steps.optimizer_step", take_half_a_minute):
        for minutes, reached in ((1, 2), (1, 2), (2.5, 5), (2.5, 5), (1.5, 3), (3, 6)):
            if reached == 3:  # a phase that begins again has all of its time
                for path in folder.glob("*.pt"):
                    path.unlink()
            with pytest.raises(TimeIsUp) as caught:
                run_folder(*SETTINGS, f"train.max_minutes={minutes}")
            stopped = f"stopped at step {reached}, saved"
            assert str(caught.value) == f"pretrain: train.max_minutes={float(minutes)} reached, {stopped}"
            hint = "continue with a larger train.max_minutes=..."
            assert (caught.value.exit_code, caught.value.hint) == (75, hint)
            assert read_checkpoint(folder / "latest.pt")["step"] == reached
        run_folder(*SETTINGS, "train.max_minutes=60")
    assert same(straight, trained(folder))
    run_folder(*SETTINGS, "train.max_minutes=1")  # what is complete is complete


def test_a_killed_process_has_used_its_time_too_and_a_damaged_note_of_it_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "step_0000001.pt").touch()
    with mock.patch.object(time_limit, "time") as clock:
        clock.monotonic.return_value = 50.0
        first = TimeLimit(tmp_path, 1.0)
        clock.monotonic.return_value = 70.0
        assert not first.is_reached()
        clock.monotonic.return_value = 500.0  # `first` is gone: it had noted 20 seconds
        second = TimeLimit(tmp_path, 1.0)
        assert not second.is_reached()
        clock.monotonic.return_value = 540.0
        assert second.seconds() == 60.0 and second.is_reached()
        for damage in ("", "[]", '{"seconds": NaN}'):
            (tmp_path / time_limit.TIME).write_text(damage)
            assert TimeLimit(tmp_path, 1.0).seconds() == 0.0


def test_a_clock_that_jumps_changes_nothing(run_folder: Run) -> None:
    """F31: back by a day, ahead by a year, at every look."""
    straight = trained(run_folder(*SETTINGS, name="straight") / "pretrain")
    draw = random.Random(0)
    jumping = mock.patch.object(time, "time", lambda: draw.choice((0.0, 1e9, 2e9, -1.0)))
    with jumping, mock.patch.object(time, "time_ns", lambda: draw.randrange(2 * 10**18)):
        folder = run_folder(*SETTINGS, name="jumping")
    assert same(straight, trained(folder / "pretrain"))
    events = list(read_metrics(folder / "pretrain" / "metrics.jsonl"))
    assert all(event["tokens_per_second"] > 0 for event in events if event["event"] == "train")
    assert 0 <= read_results(folder)["pretrain"].seconds < 600


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and RLIMIT_AS")
def test_a_limit_of_memory_ends_in_one_message_with_the_way_out(tmp_path: Path) -> None:
    """F32: whatever it is that finds no room."""
    big = ["experiment=smoke_pretrain", "data.size=3000", "model.T=512", "model.C=256", "train.B=64"]
    big += [f"data.cache_dir={tmp_path}/cache"]
    small = ["model.T=64", "model.C=32", "train.B=1", "train.total_steps=1"]
    assert cli(*big, *small, cwd=tmp_path).returncode == 0  # trains the tokenizer, which aborts without memory
    for mebibytes in (32, 48, 64, 96, 128, 192, 256, 320, 384, 512)[:: scaled(7, 1)]:
        (folder := tmp_path / str(mebibytes)).mkdir()
        done = cli(*big, cwd=folder, before=partial(limit_memory, mebibytes << 20))
        said = done.stderr
        assert done.returncode == 6, (mebibytes, said)
        assert re.search(r"^error: out of memory.*\nhint: \S", said, re.M) and "Traceback" not in said, said
        assert "memory=ckpt" in said and "train.B=32 train.accum_steps=4 (the same training)" in said, said


def test_an_mps_allocation_that_fails_is_explained_with_both_figures(plan: Plan) -> None:
    """F33."""
    figures = {"current_allocated_memory": 3 << 30, "driver_allocated_memory": 7 << 30}
    with mock.patch.multiple(torch.mps, **{name: mock.Mock(return_value=n) for name, n in figures.items()}):
        with pytest.raises(OutOfMemory) as caught, explain_out_of_memory(plan()[0], torch.device("mps")):
            raise RuntimeError("Invalid buffer size: 12.21 GiB")
    assert all(part in str(caught.value) for part in ("3.0 GiB in tensors", "7.0 GiB", "12.21 GiB"))
