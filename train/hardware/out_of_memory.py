"""Explain an out-of-memory error with settings that need less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from niels_gpt.device import describe_memory
from niels_gpt.errors import OutOfMemory, first_line, is_out_of_memory
from train.config.schema import RunCfg


@contextmanager
def explain_out_of_memory(cfg: RunCfg, device: torch.device) -> Iterator[None]:
    """Turn a device's out-of-memory error into an OutOfMemory with suggestions; let other errors pass."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        train = cfg.train
        raise OutOfMemory(
            f"out of memory on {device.type} with train.B={train.B} model.T={cfg.model.T} "
            f"train.accum_steps={train.accum_steps}; {describe_memory(device)} ({first_line(error)})",
            suggest_less_memory(cfg),
        ) from error


def suggest_less_memory(cfg: RunCfg) -> str:
    """Return settings to try next, in order, ready to paste. SFT's leave a complete pretraining as it is."""
    train, sft = cfg.train, "sft." if cfg.phase == "sft" else ""
    recompute = "sft.train.activation_checkpointing=true" if sft else "memory=ckpt"
    ways = [] if train.activation_checkpointing else [f"{recompute} (the same numbers, more time)"]
    B, accum_steps = (train.B // 2, train.accum_steps * 2) if train.B % 2 == 0 else (1, train.effective_batch)
    if cfg.batch == "auto":
        ways.append("a smaller memory_budget_gb, which measures B again")
    elif train.B > 1:
        ways.append(f"{sft}train.B={B} {sft}train.accum_steps={accum_steps} (the same training)")
    ways.append("a smaller model.T or model")
    return "try in this order: " + "; ".join(ways)
