"""Examine a machine: its hardware, its arithmetic, and the cost of a step."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from niels_gpt.device import read_physical_memory, read_sysctl, resolve_device
from train.cli.output import format_mib, format_table
from train.config.schema import RunCfg
from train.hardware.step_cost import Cost, list_variants, measure_cost

UNCHECKED = {
    "cpu": "Metal's arithmetic, autocast, speed and memory; run this on a Mac",
    "mps": "the theory, which is for float32 and fused attention; on mps attention keeps T x T scores, and "
    "activations in fp16 or bf16 take half",
}


def examine_machine(cfg: RunCfg, steps: int) -> dict[str, Any]:
    """Print what there is to say of this machine and of steps of `cfg`, piece by piece; return all of it for JSON.

    ConfigError if the asked device is not there.
    """
    device, m, t = resolve_device(cfg.device), cfg.model, cfg.train
    machine = describe_machine(device)
    step = f"V={m.V} T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} B={t.B} accum_steps={t.accum_steps}"
    print(format_table([*((name, str(value)) for name, value in machine.items()), ("step", step)]))
    costs = [measure_cost(device, variant, steps) for variant in list_variants(device, cfg)]
    print(format_costs(costs))
    print(f"not checked: {UNCHECKED[device.type]}")
    return {
        "machine": machine,
        "costs": [asdict(cost) for cost in costs],
        "unchecked": UNCHECKED[device.type],
        "settings": {"model": m.model_dump(), "train": t.model_dump(), "timed_steps": steps},
    }


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return platform, chip, memory and versions, and the memory that Metal recommends."""
    facts: dict[str, str | int] = {
        "platform": platform.platform(),
        "chip": read_sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory": f"{read_physical_memory() / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "mps": "none",
        "device": device.type,
    }
    if torch.backends.mps.is_available():
        facts["mps"] = f"{format_mib(torch.mps.recommended_max_memory())} MiB recommended"
    return facts


def format_costs(costs: Sequence[Cost]) -> str:
    """Return the measurements as a table, a line per variant."""
    rows: list[tuple[str, ...]] = [
        ("precision", "memory", "s/step", "tokens/s", "peak MiB", "theory MiB", "driver MiB")
    ]
    for cost in costs:
        if cost.trouble:
            rows.append((cost.precision, cost.memory, cost.trouble))
        else:
            speeds = f"{cost.seconds:.3f}", f"{cost.tokens_per_second:,.0f}"
            sizes = map(format_mib, (cost.peak, cost.theory, cost.driver))
            rows.append((cost.precision, cost.memory, *speeds, *sizes))
    return format_table(rows)
