"""The model of a phase: compiled when asked for, on the CPU: the same training but for rounding."""

from unittest import mock

import pytest
import torch
from conftest import Plan, Run, final, metrics, same, stopped_after
from torch._dynamo.utils import counters

from niels_gpt.errors import ConfigError, Interrupted
from train.config.schema import TrainCfgSchema
from train.loop.model import require_compiler, will_compile

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["pretrain", "sft"])  # in SFT each batch has other segments
def test_a_compiled_run_learns_the_same_but_for_rounding_and_is_compiled_once(run_folder: Run, phase: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = (
        metrics(run_folder("memory=ckpt", f"compile={option}", experiment=f"smoke_{phase}", name=option) / phase)
        for option in ("off", "on")
    )
    assert counters["stats"]["unique_graphs"] == 2, "one of require_compiler, and one of the model for all steps"
    assert not counters["graph_break"]
    assert [event["step"] for event in eager] == [event["step"] for event in compiled]
    losses = ([event["loss"] for event in events] for events in (eager, compiled))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_bit_dropout_included(run_folder: Run) -> None:
    asked = ["compile=on", "model.dropout=0.1", "data.isolate=true"]
    straight = run_folder(*asked, name="straight") / "pretrain"
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*asked, name="cut")
    resumed = run_folder(*asked, name="cut") / "pretrain"
    assert same(final(straight), final(resumed))
    assert metrics(straight) == metrics(resumed)


def test_compiling_takes_effect_on_the_cpu_alone_and_only_when_asked_for() -> None:
    asked = TrainCfgSchema(compile=True)
    assert will_compile(CPU, asked)
    assert not will_compile(MPS, asked)
    assert not will_compile(CPU, TrainCfgSchema())


def test_a_machine_without_a_compiler_is_told_before_training(plan: Plan) -> None:
    cfg = plan("compile=on")[0].train
    with mock.patch("torch.compile", side_effect=RuntimeError("no g++ found")):
        with pytest.raises(ConfigError, match="torch.compile fails on this machine: no g\\+\\+ found") as refused:
            require_compiler(CPU, cfg)
    assert "compile=off" in refused.value.hint
    with mock.patch("torch.compile", side_effect=AssertionError("nothing is to be compiled")):
        require_compiler(CPU, plan()[0].train)
