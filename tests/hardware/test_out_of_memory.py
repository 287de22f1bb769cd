"""An out-of-memory error becomes one message with settings to try next; other errors pass through."""

import re
from unittest import mock

import pytest
import torch
from conftest import Plan, Run, final

from niels_gpt.errors import OutOfMemory, is_out_of_memory
from train.hardware.out_of_memory import explain_out_of_memory, suggest_less_memory

CPU = torch.device("cpu")
TEXTS = [
    "MPS backend out of memory (MPS allocated: 18.02 GB, other allocations: 96.00 KB, max allowed: 18.13 GB). "
    "Tried to allocate 500.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable it.",
    "Invalid buffer size: 19.07 GiB",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.",
    "std::bad_alloc",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_both_devices_become_one_message_with_the_ways_out(plan: Plan, text: str) -> None:
    cfg = plan("train.B=8", "train.accum_steps=3")[0]
    with pytest.raises(OutOfMemory) as caught, explain_out_of_memory(cfg, CPU):
        raise RuntimeError(text)
    (said,), ways = str(caught.value).splitlines(), caught.value.hint
    assert "train.B=8 model.T=64 train.accum_steps=3" in said and "GiB were in use" in said
    assert ways.index("memory=ckpt") < ways.index("train.B=4 train.accum_steps=6 (the same training)")


def test_what_has_been_tried_is_not_advised_again(plan: Plan) -> None:
    assert "memory=ckpt" not in suggest_less_memory(plan("memory=ckpt", "train.B=1")[0])
    assert "train.B=" not in suggest_less_memory(plan("memory=ckpt", "train.B=1")[0])
    assert "train.B=1 train.accum_steps=15" in suggest_less_memory(plan("train.B=5", "train.accum_steps=3")[0])


@pytest.mark.usefixtures("copied_run")
def test_the_hint_of_a_second_phase_can_be_pasted(run_folder: Run) -> None:
    """It changes SFT alone: the settings of a complete pretraining stay."""
    longer, full = "sft.train.total_steps=5", RuntimeError(TEXTS[1])
    with mock.patch("train.loop.steps.optimizer_step", side_effect=full), pytest.raises(OutOfMemory) as caught:
        run_folder(longer, experiment="smoke_pipeline")
    pasted = re.findall(r"sft\.train\.\w+=\w+", caught.value.hint)
    assert pasted == ["sft.train.activation_checkpointing=true", "sft.train.B=2", "sft.train.accum_steps=4"]
    assert final(run_folder(longer, *pasted, experiment="smoke_pipeline") / "sft")["step"] == 5


def test_other_errors_pass_through(plan: Plan) -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"), explain_out_of_memory(plan()[0], CPU):
        raise RuntimeError("shape mismatch")


def test_a_real_allocation_that_fails_is_explained(plan: Plan) -> None:
    with pytest.raises(OutOfMemory), explain_out_of_memory(plan()[0], CPU):
        torch.empty(1 << 50)
