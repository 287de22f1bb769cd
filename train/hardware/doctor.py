"""Examine a machine: its hardware, whether it computes correctly, and what a step costs."""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import physical_memory, read_sysctl, resolve_device
from train.cli.output import mib, table
from train.config.schema import RunCfg
from train.hardware.preflight import problems
from train.hardware.step_cost import PRECISIONS, Cost, measured, pairs, savings, variants
from train.loop.amp import DTYPES, Amp

Say = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What preflight said of a precision; nothing wrong is an empty tuple."""

    precision: str
    wrong: tuple[str, ...]


def examine(cfg: RunCfg, steps: int, say: Say) -> dict[str, Any]:
    """Tell, piece by piece, what this machine is and does with the model and batch of `cfg`; return it for JSON.

    Raises:
        ConfigError: the asked device is not there.
    """
    device = resolve_device(cfg.device)
    facts = machine(device)
    say(table([*((name, str(value)) for name, value in facts.items()), ("step", settings(cfg))]))
    verdicts = [Verdict(name, tuple(problems(device, *_probe(device, name)))) for name in PRECISIONS]
    say(verdict_table(device, verdicts))
    costs = [measured(device, variant, steps) for variant in variants(device, cfg)]
    say(cost_table(costs))
    notes = unchecked(device, cfg)
    say("\n".join(f"not checked: {note}" for note in notes))
    return {
        "machine": facts,
        "preflight": [asdict(verdict) for verdict in verdicts],
        "costs": [asdict(cost) for cost in costs],
        "saving": savings(costs),
        "unchecked": notes,
        "settings": {"model": cfg.model.model_dump(), "train": cfg.train.model_dump(), "timed_steps": steps},
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what there is: platform, chip, memory, versions, and on mps what Metal gives and holds."""
    facts: dict[str, str | int] = {
        "platform": platform.platform(),
        "chip": chip(),
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
        facts["mps memory"] = f"{mib(recommended)} MiB recommended, {mib(held)} MiB allocated"
    return facts


def chip() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    if sys.platform == "darwin":
        return read_sysctl("machdep.cpu.brand_string") or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def settings(cfg: RunCfg) -> str:
    """Return the shapes of the measured step."""
    m, t = cfg.model, cfg.train
    return f"V={m.V} T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} B={t.B} accum_steps={t.accum_steps}"


def _probe(device: torch.device, precision: str) -> tuple[Amp, torch.dtype]:
    """Return the autocast that preflight tries, and the dtype that it should compute in."""
    if precision == "off":
        return nullcontext, torch.float32
    return partial(torch.autocast, device.type, dtype=DTYPES[precision]), DTYPES[precision]


def verdict_table(device: torch.device, verdicts: list[Verdict]) -> str:
    """Return what preflight said, a line per precision."""
    rows = [(f"precision={v.precision}", "; ".join(v.wrong) or "computes rightly") for v in verdicts]
    return table([("preflight", f"on {device.type}, against float32 on the CPU"), *rows])


def unchecked(device: torch.device, cfg: RunCfg) -> list[str]:
    """Return what this examination cannot tell, in sentences."""
    notes = []
    if device.type == "mps":
        notes.append("peak memory within an operation; tensors and driver are looked at after each one")
        notes.append(
            "the theory on mps: it is for float32 and fused attention; there attention keeps T x T scores, "
            "and activations in fp16 or bf16 take half"
        )
    else:
        why = (
            f"device={cfg.device} was asked for" if torch.backends.mps.is_available() else "this machine has none"
        )
        notes.append(f"mps ({why}): Metal's arithmetic, autocast, speed and memory; run this command on a Mac")
        notes.append(
            "fp16 and bf16 in a run: on the CPU it computes in float32 whatever the precision, so it is measured "
            "once; the verdicts on them are of the CPU's autocast"
        )
        notes.append("memory within an operation; tensors are counted after each one")
    return notes


def cost_table(costs: list[Cost]) -> str:
    """Return the measurements, a line per variant; what is saved is against the line above."""
    head = ("precision", "memory", "s/step", "tokens/s", "peak MiB", "driver MiB", "saved", "in theory")
    rows = [cost_row(cost, off) for off, ckpt in pairs(costs) for cost in (off, ckpt)]
    return table([head, *rows])


def cost_row(cost: Cost, off: Cost) -> tuple[str, ...]:
    """Return the cells of one measurement; `off` is the one without recomputation."""
    if cost.seconds is None:
        return cost.precision, cost.memory, cost.trouble
    cells = (f"{cost.seconds:.3f}", f"{cost.tokens_per_second:,.0f}", mib(cost.peak), mib(cost.driver))
    saved = off.peak - cost.peak if off.peak and cost.peak else None
    compared = ("-", "-") if cost is off else (mib(saved), mib(off.theory - cost.theory))
    return cost.precision, cost.memory, *cells, *compared
