"""Autocast on mps when it is asked for, nothing anywhere else."""

from contextlib import nullcontext

import pytest
import torch
from conftest import Run, same

from niels_gpt.errors import ConfigError
from niels_gpt.weights import read_checkpoint
from train.amp import amp_active, amp_factory, preflight
from train.config import TrainCfgSchema

CPU, MPS = torch.device("cpu"), torch.device("mps")
NO_MAC = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs a Mac with Metal: no mps here")


def test_the_cpu_never_autocasts_even_with_amp() -> None:
    cfg = TrainCfgSchema(amp=True)
    assert not amp_active(CPU, cfg)
    context = amp_factory(CPU, cfg)()
    assert isinstance(context, nullcontext)
    with context:
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_mps_autocasts_in_the_asked_dtype_when_amp_is_on(name: str, dtype: torch.dtype) -> None:
    cfg = TrainCfgSchema.model_validate({"amp": True, "amp_dtype": name})
    assert amp_active(MPS, cfg)
    with amp_factory(MPS, cfg)():
        assert torch.is_autocast_enabled("mps")
        assert torch.get_autocast_dtype("mps") == dtype
    assert not torch.is_autocast_enabled("mps")


def test_mps_does_not_autocast_with_amp_off() -> None:
    with amp_factory(MPS, TrainCfgSchema(amp=False))():
        assert not torch.is_autocast_enabled("mps")


def test_a_dtype_that_the_device_cannot_do_fails_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones  # stands in for an mps on which autocast has turned itself off: the product stays fp32
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    with pytest.raises(
        ConfigError, match=r"train.amp_dtype=bf16 was asked for, but mps gave torch.float32"
    ) as caught:
        preflight(MPS, TrainCfgSchema(amp_dtype="bf16"))
    assert caught.value.hint == "use precision=off or precision=fp16"


def test_preflight_asks_nothing_of_a_device_without_autocast() -> None:
    preflight(CPU, TrainCfgSchema(amp=True))
    preflight(MPS, TrainCfgSchema(amp=False))


def test_precision_off_and_fp16_are_the_same_program_on_the_cpu(run_folder: Run) -> None:
    """Promise 5."""
    states = [
        read_checkpoint(run_folder(f"precision={option}", "device=cpu", name=option) / "pretrain" / "latest.pt")
        for option in ("off", "fp16", "bf16")
    ]
    assert [state["train_cfg"]["amp"] for state in states] == [False, True, True]
    for state in states[1:]:
        assert same(state["model_state"], states[0]["model_state"])
        assert same(state["optimizer_state"], states[0]["optimizer_state"])


@pytest.mark.mps
@NO_MAC
def test_the_real_device_computes_in_fp16_and_trains(run_folder: Run) -> None:
    preflight(MPS, TrainCfgSchema())
    folder = run_folder("device=mps", "precision=fp16", "memory=ckpt")
    assert read_checkpoint(folder / "pretrain" / "latest.pt")["step"] == 4
