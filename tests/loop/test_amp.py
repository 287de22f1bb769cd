"""Autocast on mps when it is asked for, nothing anywhere else."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import Run
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.loss import next_token_loss
from niels_gpt.model.gpt import GPT
from niels_gpt.weights.checkpoint import read_checkpoint
from train.config.schema import TrainCfgSchema
from train.loop.amp import advise_precision, amp_factory, choose_loss_scale, uses_autocast
from train.loop.optim import unscale_gradients

CPU, MPS = torch.device("cpu"), torch.device("mps")
NO_MAC = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs a Mac with Metal: no mps here")


def test_the_cpu_never_autocasts_even_with_amp() -> None:
    cfg = TrainCfgSchema(amp=True)
    assert not uses_autocast(CPU, cfg)
    context = amp_factory(CPU, cfg)()
    assert isinstance(context, nullcontext)
    with context:
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_mps_autocasts_in_the_asked_dtype_when_amp_is_on(name: str, dtype: torch.dtype) -> None:
    cfg = TrainCfgSchema.model_validate({"amp": True, "amp_dtype": name})
    assert uses_autocast(MPS, cfg)
    with amp_factory(MPS, cfg)():
        assert torch.is_autocast_enabled("mps")
        assert torch.get_autocast_dtype("mps") == dtype
    assert not torch.is_autocast_enabled("mps")


def test_mps_does_not_autocast_with_amp_off() -> None:
    with amp_factory(MPS, TrainCfgSchema(amp=False))():
        assert not torch.is_autocast_enabled("mps")


@pytest.mark.parametrize(("targets", "scale"), [(1, 1.0), (1000, 1024.0), (8192, 8192.0), (100_000, 131072.0)])
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


# A study of what fp16 does to the gradient: CPU autocast has other rules than that of mps, but the same numbers.
STUDY = ModelCfg(V=2048, T=128, C=64, L=2, H=2, d_ff=128, tie_embeddings=True)
TOKENS = 64 * 128


@pytest.fixture(scope="module")
def learned() -> tuple[GPT, Tensor]:
    """A model that has learned something, and a batch: the better it is, the smaller are its gradients."""
    torch.manual_seed(0)
    model = GPT(STUDY)
    starts = torch.randint(0, 512, (64, 1))
    ids = (starts + torch.arange(129) * 3) % 512  # (64, T+1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        next_token_loss(model(ids[:16, :-1]), ids[:16, 1:], 16 * 128).backward()
        optimizer.step()
    return model, ids


def logits_with_a_low_precision_head(model: GPT, ids: Tensor) -> Tensor:
    hidden: list[Tensor] = []
    with model.norm.register_forward_hook(lambda *call: hidden.append(call[2])):
        model(ids)
    return torch.nn.functional.linear(hidden[0], model.head_weight)


def gradient(
    model: GPT, ids: Tensor, dtype: torch.dtype | None, scale: float = 1.0, head: Any = GPT.__call__
) -> Tensor:
    """Return the gradient of the mean loss as one vector, computed under CPU autocast in `dtype`."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = next_token_loss(head(model, ids[:, :-1]), ids[:, 1:], TOKENS)
    (loss * scale).backward()
    unscale_gradients(model, scale)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
def test_an_fp32_head_and_a_scale_keep_the_gradient_that_fp16_loses(learned: tuple[GPT, Tensor]) -> None:
    exact = gradient(*learned, None)

    def error(**how: Any) -> float:
        return float((gradient(*learned, torch.float16, **how) - exact).norm() / exact.norm())

    with_head, scaled = error(), error(scale=float(2**13))
    plain = error(head=logits_with_a_low_precision_head)
    assert plain > 0.10, "the negative control: all in fp16 loses a good part"
    assert with_head < 0.02 and scaled < 0.005
    assert scaled < with_head < plain


@pytest.mark.mps
@NO_MAC
def test_the_real_device_computes_in_fp16_and_trains(run_folder: Run) -> None:
    folder = run_folder("device=mps", "precision=fp16", "memory=ckpt")
    assert read_checkpoint(folder / "pretrain" / "latest.pt")["step"] == 4
