"""Make the model of a phase: seeded, and recomputed or compiled as its settings say."""

import logging

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.errors import ConfigError, first_line
from niels_gpt.model.gpt import GPT
from niels_gpt.seeds import derive_seed
from train.config.schema import TrainCfgSchema

log = logging.getLogger("niels_gpt")


def make_model(cfg: ModelCfg, train: TrainCfgSchema, device: torch.device) -> GPT:
    """Return a GPT with new weights on a device. The weights are drawn on the CPU, the same for every device."""
    torch.manual_seed(derive_seed("weights", train.seed))
    recompute, compiled = train.activation_checkpointing, will_compile(device, train)
    return GPT(cfg, activation_checkpointing=recompute, compiled=compiled).to(device)


def will_compile(device: torch.device, train: TrainCfgSchema) -> bool:
    """Return whether this run compiles its model: on request, on the CPU only (unmeasured on mps)."""
    return train.compile and device.type == "cpu"


def require_compiler(device: torch.device, train: TrainCfgSchema) -> None:
    """If the run compiles its model, try torch.compile on a small function first.

    ConfigError if torch.compile fails here.
    """
    if not will_compile(device, train):
        return
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8))  # noqa: TID251
    except Exception as error:  # a compiler fails in as many ways as there are compilers
        raise ConfigError(
            f"compile=on: torch.compile fails on this machine: {first_line(error)}",
            "install a C++ compiler (g++ or clang++), or use compile=off",
        ) from error
    log.info(
        "compile=on: the first step compiles the model, which takes up to a minute, or seconds if it is cached"
    )
