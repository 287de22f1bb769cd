"""Autocast on mps when it is asked for, nothing anywhere else."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from niels_gpt.errors import ConfigError
from train.config import TrainCfgSchema

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Amp = Callable[[], AbstractContextManager[None]]


def amp_active(device: torch.device, cfg: TrainCfgSchema) -> bool:
    """Return whether this run computes in low precision: `amp` on mps, never on the CPU."""
    return cfg.amp and device.type == "mps"


def amp_factory(device: torch.device, cfg: TrainCfgSchema) -> Amp:
    """Return what makes the context of one microbatch: autocast in `amp_dtype`, or nothing."""
    if not amp_active(device, cfg):
        return nullcontext
    return partial(torch.autocast, device.type, dtype=DTYPES[cfg.amp_dtype])


def preflight(device: torch.device, cfg: TrainCfgSchema) -> None:
    """Try a real operation in the asked precision, since an autocast that cannot work only warns.

    Raises:
        ConfigError: the device does not compute in that dtype.
    """
    if not amp_active(device, cfg):
        return
    try:
        with amp_factory(device, cfg)():
            square = torch.ones(16, 16, device=device)
            product = square @ square
        seen = f"{product.dtype}, {product[0, 0].item()} for 16.0"
        works = product.dtype == DTYPES[cfg.amp_dtype] and product[0, 0].item() == 16.0
    except (RuntimeError, TypeError) as error:
        seen, works = str(error).splitlines()[0], False
    if not works:
        raise ConfigError(
            f"train.amp_dtype={cfg.amp_dtype} was asked for, but {device.type} gave {seen} "
            f"(torch {torch.__version__})",
            "use precision=off or precision=fp16",
        )
