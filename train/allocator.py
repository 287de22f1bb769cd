"""Keeps freed memory at hand for the next tensors, where the C library would give it back to the system."""

import ctypes
import platform

import torch

from train.config import TrainCfgSchema

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt in glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory(device: torch.device, train: TrainCfgSchema) -> bool:
    """Make glibc keep what is freed, for a run on the CPU that is not after memory; return whether it will.

    A step frees and takes the same sizes again; pages fresh from the system have to be filled with zeros each
    time. Elsewhere than on Linux with glibc nothing is changed.
    """
    if device.type != "cpu" or train.activation_checkpointing or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
