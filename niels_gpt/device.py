"""The device a run uses, and the memory in use on it."""

import resource
import sys

import torch

from niels_gpt.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `mps`; `auto` is mps where there is one.

    Raises:
        ConfigError: mps was asked for and is not there, or another device was asked for.
    """
    if name not in ("auto", "cpu", "mps"):
        raise ConfigError(f"device={name} was asked for, but only cpu and mps are supported", "use device=auto")
    there = torch.backends.mps.is_available()
    if name == "mps" and not there:
        raise ConfigError("device=mps was asked for, but this machine has none", "use device=cpu or device=auto")
    return torch.device("mps" if there and name != "cpu" else "cpu")


def get_random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the device's default generator, which dropout draws from."""
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Make the device's default generator go on from `state`."""
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def memory_in_use(device: torch.device) -> int:
    """Return bytes: what the Metal driver holds on mps, the largest resident size so far on the CPU."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux, bytes on macOS
