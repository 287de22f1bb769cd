"""The form of what the doctor found: its tables and its report file."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError
from train.step_cost import Cost, pairs

MIB = 2**20


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


def mib(size: int | None) -> str:
    """Return bytes in MiB, a dash for None."""
    return "-" if size is None else f"{size / MIB:,.0f}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; a short row's last cell may be as wide as it likes."""
    full = [row for row in rows if len(row) == max(map(len, rows))]
    widths = [max(len(row[n]) for row in full) for n in range(len(full[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


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
