"""Examine a machine: its hardware, its arithmetic, and the cost of a step."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import physical_memory, read_sysctl, resolve_device
from train.cli.output import format_mib, format_table
from train.config.schema import RunCfg
from train.hardware.preflight import find_problems
from train.hardware.step_cost import PRECISIONS, Cost, list_variants, measure_cost
from train.loop.amp import DTYPES

METAL_UNCHECKED = [
    "peak memory within an operation; tensors and driver memory are sampled after each operation",
    "the theory on mps, which is for float32 and fused attention; there attention keeps T x T scores, "
    "and activations in fp16 or bf16 take half",
]
CPU_UNCHECKED = [
    "fp16 and bf16 in a run: the CPU computes in float32 whatever the precision, so a step is measured once; "
    "the verdicts on them are of the CPU's autocast",
    "memory within an operation; tensors are counted after each one",
]


def examine_machine(cfg: RunCfg, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Report piece by piece on this machine and on steps of `cfg`; return all of it for JSON.

    Raises:
        ConfigError: the asked device is not there.
    """
    device, m, t = resolve_device(cfg.device), cfg.model, cfg.train
    machine = describe_machine(device)
    step = f"V={m.V} T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} B={t.B} accum_steps={t.accum_steps}"
    say(format_table([*((name, str(value)) for name, value in machine.items()), ("step", step)]))
    wrong = {precision: check_precision(device, precision) for precision in PRECISIONS}
    verdicts = [(f"precision={name}", "; ".join(seen) or "computes correctly") for name, seen in wrong.items()]
    say(format_table([("preflight", f"on {device.type}, against float32 on the CPU"), *verdicts]))
    costs = [measure_cost(device, variant, steps) for variant in list_variants(device, cfg)]
    say(cost_table(costs))
    notes = list_unchecked(device, cfg)
    say("\n".join(f"not checked: {note}" for note in notes))
    return {
        "machine": machine,
        "preflight": [{"precision": name, "wrong": seen} for name, seen in wrong.items()],
        "costs": [asdict(cost) for cost in costs],
        "saving": [compare_memory(off, ckpt) for off, ckpt in pair_costs(costs)],
        "unchecked": notes,
        "settings": {"model": m.model_dump(), "train": t.model_dump(), "timed_steps": steps},
    }


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return platform, chip, memory and versions, and on mps the memory that Metal recommends and holds."""
    facts: dict[str, str | int] = {
        "platform": platform.platform(),
        "chip": read_chip_name(),
        "cores": os.cpu_count() or 1,
        "memory": f"{physical_memory() / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "macOS": platform.mac_ver()[0] or "none",
        "mps": "available" if torch.backends.mps.is_available() else "none",
        "device": device.type,
    }
    if torch.backends.mps.is_available():
        recommended, held = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        facts["mps memory"] = f"{format_mib(recommended)} MiB recommended, {format_mib(held)} MiB allocated"
    return facts


def read_chip_name() -> str:
    """Return the processor's name, or its architecture if the system does not say."""
    if sys.platform == "darwin":
        return read_sysctl("machdep.cpu.brand_string") or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def check_precision(device: torch.device, precision: str) -> list[str]:
    """Return the problems that preflight finds with a precision on a device."""
    if precision == "off":
        return list(find_problems(device, nullcontext, torch.float32))
    dtype = DTYPES[precision]
    return list(find_problems(device, partial(torch.autocast, device.type, dtype=dtype), dtype))


def list_unchecked(device: torch.device, cfg: RunCfg) -> list[str]:
    """List the checks that this device cannot run."""
    if device.type == "mps":
        return METAL_UNCHECKED
    mps = torch.backends.mps.is_available()
    why = f"device={cfg.device} was asked for" if mps else "this machine has none"
    return [f"mps ({why}): Metal's arithmetic, autocast, speed and memory; run this on a Mac", *CPU_UNCHECKED]


def pair_costs(costs: Sequence[Cost]) -> list[tuple[Cost, Cost]]:
    """Return each precision's costs without and with recomputation."""
    return list(zip(costs[::2], costs[1::2], strict=True))


def compare_memory(off: Cost, ckpt: Cost) -> dict[str, Any]:
    """Return the bytes that memory=ckpt saves, measured and in theory, and its time ratio."""
    saving: dict[str, Any] = {"precision": off.precision, "theory": off.theory - ckpt.theory}
    if off.peak and ckpt.peak and off.seconds and ckpt.seconds:
        saving |= {"peak": off.peak - ckpt.peak, "time": ckpt.seconds / off.seconds}
    return saving


def cost_table(costs: Sequence[Cost]) -> str:
    """Return the measurements, a line per variant; each saving is against the line above."""
    rows: list[tuple[str, ...]] = [
        ("precision", "memory", "s/step", "tokens/s", "peak MiB", "driver MiB", "saved", "in theory")
    ]
    for off, ckpt in pair_costs(costs):
        saving = compare_memory(off, ckpt)
        for cost, saved in (
            (off, ("-", "-")),
            (ckpt, (format_mib(saving.get("peak")), format_mib(saving["theory"]))),
        ):
            if cost.seconds is None:
                rows.append((cost.precision, cost.memory, cost.trouble))
                continue
            cells = (
                f"{cost.seconds:.3f}",
                f"{cost.tokens_per_second:,.0f}",
                format_mib(cost.peak),
                format_mib(cost.driver),
            )
            rows.append((cost.precision, cost.memory, *cells, *saved))
    return format_table(rows)
