"""The line in which a phase says, before it begins, what is really going to happen on this device."""

import torch

from niels_gpt.data.batches import Source
from train.amp import amp_active
from train.checkpointing import TrainState
from train.model import compile_active
from train.schema import RunCfg


def startup_line(cfg: RunCfg, state: TrainState, train_source: Source) -> str:
    """Return what is going to happen, in one line; `amp` says what this device will really do."""
    facts = {
        "device": state.model.device.type,
        "amp": "on" if amp_active(state.model.device, cfg.train) else "off",
        "amp_dtype": cfg.train.amp_dtype,
        "activation_checkpointing": str(cfg.train.activation_checkpointing).lower(),
        "micro_B": cfg.train.B,
        "accum_steps": cfg.train.accum_steps,
        "effective_batch": cfg.train.effective_batch,
        "T": cfg.model.T,
        "parameters": f"{state.model.parameter_count():,}",
        "steps": f"{state.step}..{cfg.train.total_steps}",
        "sequences_per_epoch": len(train_source),
        "compile": "on" if compile_active(state.model.device, cfg.train) else "off",
        "threads": torch.get_num_threads(),
    }
    return f"{cfg.phase}: " + " ".join(f"{key}={value}" for key, value in facts.items())
