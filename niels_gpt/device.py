"""Choose the device, and measure its memory: physical, free and in use."""

import ctypes
import gc
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from niels_gpt.errors import ConfigError

BUDGET = 0.8  # of the free memory: a run also evaluates and saves, and other programs need some


def resolve_device(name: Literal["auto", "cpu", "mps"]) -> torch.device:
    """Return the device; `auto` is mps if available. ConfigError if mps was asked for and is not available."""
    has_mps = torch.backends.mps.is_available()
    if name == "mps" and not has_mps:
        raise ConfigError("device=mps is not available on this machine", "use device=cpu or device=auto")
    return torch.device("mps" if has_mps and name != "cpu" else "cpu")


def get_random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the device's default generator, which dropout draws from."""
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the state of the device's default generator."""
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def measure_memory(device: torch.device) -> int:
    """Return the bytes that the Metal driver holds, or the peak resident size on the CPU."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    # On Linux ru_maxrss is in kilobytes, and a child's starts at its parent's; on macOS it is in bytes.
    return read_proc_bytes("/proc/self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory(device: torch.device) -> None:
    """Return freed memory to the system and reset the peak of measure_memory.

    Only Linux can reset it on the CPU; elsewhere it stays the peak of the whole process.
    """
    gc.collect()
    if device.type == "mps":
        torch.mps.empty_cache()
        return
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def describe_memory(device: torch.device) -> str:
    """Return the memory in use as text; on mps the driver holds more than the tensors take."""
    in_use = f"{measure_memory(device) / 2**30:.1f} GiB were in use"
    if device.type != "mps":
        return in_use
    return f"{in_use} by the driver, {torch.mps.current_allocated_memory() / 2**30:.1f} GiB in tensors"


def compute_memory_budget(device: torch.device) -> int:
    """Return the bytes that a run may take: most of Metal's recommended maximum, or of the free memory."""
    if device.type == "mps":
        return int(BUDGET * torch.mps.recommended_max_memory())
    return int(BUDGET * (read_proc_bytes("/proc/meminfo", "MemAvailable") or read_physical_memory()))


def read_physical_memory() -> int:
    """Return the bytes of memory in the machine."""
    if sys.platform == "darwin":
        return int(read_sysctl("hw.memsize") or 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_sysctl(name: str) -> str:
    """Return a system value of macOS."""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True).stdout.strip()


def read_proc_bytes(path: str, name: str) -> int:
    """Return the bytes of a line `name: N kB` of a file in /proc, 0 if there is none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
