"""Autocast on mps on request, a null context elsewhere; and the loss scale of fp16."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from train.config.schema import TrainCfgSchema

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FP16_TOKENS = 8192  # per step; above, plain fp16 loses a noticeable part of the gradient
Amp = Callable[[], AbstractContextManager[None]]


def uses_autocast(device: torch.device, cfg: TrainCfgSchema) -> bool:
    """Return whether this run computes in low precision: `amp` on mps, never on the CPU."""
    return cfg.amp and device.type == "mps"


def amp_factory(device: torch.device, cfg: TrainCfgSchema) -> Amp:
    """Return the factory of a microbatch's context: autocast in `amp_dtype`, or a null context."""
    if not uses_autocast(device, cfg):
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[cfg.amp_dtype])


def choose_loss_scale(targets: int, device: torch.device, cfg: TrainCfgSchema) -> float:
    """Return the factor of a step's loss before backward: the power of two nearest its number of targets, or 1.

    The mean over N targets makes a logit's gradient at most 1/N; multiplied by N it fills fp16's range and stays
    below 1. A power of two is exact, and the factor depends on the data alone, so there is no state to save. It
    is 1 unless autocast in fp16 is on and loss_scaling is set.
    """
    asked = cfg.loss_scaling and cfg.amp_dtype == "fp16" and uses_autocast(device, cfg)
    return 2.0 ** round(math.log2(targets)) if asked and targets else 1.0


def advise_precision(device: torch.device, cfg: TrainCfgSchema, T: int) -> str | None:
    """Return a warning if plain fp16 loses part of the gradient at this many tokens per step, else None."""
    tokens = cfg.effective_batch * T
    if cfg.loss_scaling or cfg.amp_dtype != "fp16" or not uses_autocast(device, cfg) or tokens <= FP16_TOKENS:
        return None
    return (
        f"precision=fp16 with {tokens} tokens per step: small gradients underflow "
        f"(about 1 % is lost at {FP16_TOKENS} tokens, 17 % at 131072); use precision=bf16 or precision=fp16_scaled"
    )
