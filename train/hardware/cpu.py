"""Set the CPU up for a run: the library for matrix products, and keeping freed memory."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt in glibc's malloc.h
NEVER = 2**31 - 1


def prepare_cpu(device: torch.device) -> None:
    """Make this process fast at training on the CPU; nothing is changed for another device."""
    if device.type == "cpu":
        prefer_onednn()
        keep_freed_memory()


def prefer_onednn() -> bool:
    """Let oneDNN multiply float32 matrices instead of MKL, where it does so in float32; return whether it will.

    On AMD's processors it is a tenth faster. The setting that hands products to it would allow it bfloat16, which
    it takes with AMX (and on ARM) alone: there MKL stays.
    """
    exact = platform.machine() == "x86_64" and not torch.cpu.get_capabilities().get("amx_tile", True)
    if exact:
        torch.set_float32_matmul_precision("medium")
    return exact


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed; return whether it will.

    A step frees and takes the same sizes again; pages fresh from the system have to be filled with zeros each
    time. The peak of what is resident stays within some percent, with recomputation too. Elsewhere than on Linux
    with glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
