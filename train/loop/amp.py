"""Autocast on mps when it is asked for, nothing elsewhere; and the loss scale of fp16."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from train.config.schema import TrainCfgSchema

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FP16_TOKENS = 8192  # a step; above that plain fp16 loses a noticeable part of the gradient
Amp = Callable[[], AbstractContextManager[None]]


def amp_active(device: torch.device, cfg: TrainCfgSchema) -> bool:
    """Return whether this run computes in low precision: `amp` on mps, never on the CPU."""
    return cfg.amp and device.type == "mps"


def amp_factory(device: torch.device, cfg: TrainCfgSchema) -> Amp:
    """Return what makes the context of one microbatch: autocast in `amp_dtype`, or nothing."""
    if not amp_active(device, cfg):
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[cfg.amp_dtype])


def loss_scale(targets: int, device: torch.device, cfg: TrainCfgSchema) -> float:
    """Return the power of two that a step's loss is multiplied by before backward: near its number of targets.

    The mean over N targets makes each gradient of a logit at most 1/N; multiplied back it fills fp16's range and
    cannot exceed 1. A power of two is exact, and the factor is a function of the data: there is no state. It is 1
    wherever autocast is off or another factor was not asked for.
    """
    asked = cfg.loss_scaling and cfg.amp_dtype == "fp16" and amp_active(device, cfg)
    return 2.0 ** round(math.log2(targets)) if asked and targets else 1.0


def precision_advice(device: torch.device, cfg: TrainCfgSchema, T: int) -> str | None:
    """Return what plain fp16 loses at this many tokens a step, or None where that is little."""
    tokens = cfg.effective_batch * T
    if cfg.loss_scaling or cfg.amp_dtype != "fp16" or not amp_active(device, cfg) or tokens <= FP16_TOKENS:
        return None
    return (
        f"precision=fp16 with {tokens} tokens a step: gradients begin to fall below fp16's smallest number "
        f"(about 1 % is lost at {FP16_TOKENS} tokens, 17 % at 131072); use precision=bf16 or precision=fp16_scaled"
    )
