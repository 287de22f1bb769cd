"""Autocast on mps when it is asked for, nothing anywhere else."""

import pytest
import torch
from conftest import Run

from niels_gpt.weights.checkpoint import read_checkpoint
from train.config.schema import TrainCfgSchema
from train.loop.amp import advise_precision, amp_factory, choose_loss_scale, uses_autocast

CPU, MPS = torch.device("cpu"), torch.device("mps")


def test_the_cpu_never_autocasts_even_with_amp() -> None:
    cfg = TrainCfgSchema(amp=True)
    assert not uses_autocast(CPU, cfg)
    with amp_factory(CPU, cfg)():
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_mps_autocasts_in_the_asked_dtype_when_amp_is_on_and_only_then(name: str, dtype: torch.dtype) -> None:
    cfg = TrainCfgSchema.model_validate({"amp": True, "amp_dtype": name})
    assert uses_autocast(MPS, cfg)
    with amp_factory(MPS, cfg)():
        assert torch.is_autocast_enabled("mps")
        assert torch.get_autocast_dtype("mps") == dtype
    with amp_factory(MPS, cfg.model_copy(update={"amp": False}))():
        assert not torch.is_autocast_enabled("mps")


@pytest.mark.parametrize(("targets", "scale"), [(1, 1.0), (1000, 1024.0), (100_000, 131072.0)])
def test_the_loss_scale_is_the_power_of_two_next_to_the_targets_of_the_step(targets: int, scale: float) -> None:
    assert choose_loss_scale(targets, MPS, TrainCfgSchema(loss_scaling=True)) == scale


def test_the_loss_scale_is_one_wherever_it_was_not_asked_for_or_autocast_is_off() -> None:
    scaled = TrainCfgSchema(loss_scaling=True)
    assert choose_loss_scale(8192, CPU, scaled) == 1
    assert choose_loss_scale(8192, MPS, TrainCfgSchema()) == 1
    assert choose_loss_scale(8192, MPS, TrainCfgSchema(loss_scaling=True, amp=False)) == 1
    assert choose_loss_scale(8192, MPS, TrainCfgSchema(loss_scaling=True, amp_dtype="bf16")) == 1
    assert choose_loss_scale(0, MPS, scaled) == 1


def test_plain_fp16_with_many_tokens_a_step_is_advised_against() -> None:
    advice = advise_precision(MPS, TrainCfgSchema(B=32, accum_steps=2), 256)
    assert advice and "precision=bf16 or precision=fp16_scaled" in advice and "16384 tokens" in advice
    assert advise_precision(MPS, TrainCfgSchema(B=32, accum_steps=1), 256) is None
    assert advise_precision(CPU, TrainCfgSchema(B=64, accum_steps=2), 256) is None
    assert advise_precision(MPS, TrainCfgSchema(B=64, loss_scaling=True), 256) is None


@pytest.mark.mps
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs mps")
def test_the_real_device_computes_in_fp16_and_trains(run_folder: Run) -> None:
    folder = run_folder("device=mps", "precision=fp16", "memory=ckpt")
    assert read_checkpoint(folder / "pretrain" / "latest.pt")["step"] == 4
