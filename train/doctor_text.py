"""The form of what the doctor found: its tables and its report file."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError
from train.step_cost import Cost, pairs
from train.text_table import mib, table


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


def report_path(asked: Path | None) -> Path:
    """Return where the report goes: `asked`, or doctor.json, doctor-2.json, ...: whichever is not there yet.

    Raises:
        ConfigError: `asked` is there already, or its folder is not.
    """
    if asked is None:
        names = ("doctor.json", *(f"doctor-{n}.json" for n in range(2, 1000)))
        return next(path for path in map(Path, names) if not path.exists())
    if asked.exists():
        raise ConfigError(f"--json {asked}: it is there already", "give another name, or none")
    if not asked.parent.is_dir():
        raise ConfigError(f"--json {asked}: there is no folder {asked.parent}", "make it, or give another name")
    return asked


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON to a new file."""
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(report, indent=2) + "\n")
