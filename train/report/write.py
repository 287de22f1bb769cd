"""Write the report of a sweep from its run folders: sweep.html, .csv, .md and .json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from niels_gpt.storage import write_text
from train.report.findings import Best, best, caveats, differing, pareto_front, sentence, splits
from train.report.page import as_page
from train.report.rows import Row, is_run, read_row
from train.report.tables import PEAK, as_csv, as_markdown, literal, values

LOCK = ".sweep.lock"


def rewrite(folder: Path, budget_gb: float | None) -> list[Row]:
    """Write the report of a sweep's folder as its runs stand now, and return their rows.

    Several processes may do so at once: whoever comes last has read last.
    """
    with FileLock(folder / LOCK):
        rows = read_rows(folder)
        _write(folder, rows, folder.resolve().name, budget_gb)
    return rows


def read_rows(folder: Path) -> list[Row]:
    """Return a row for each run in a folder, in the order of their numbers; one without a number comes last."""
    rows = [read_row(child) for child in sorted(folder.iterdir()) if is_run(child)]
    return sorted(rows, key=lambda row: (row.status == "unreadable", row.number))


def write_report(folder: Path, rows: Sequence[Row], title: str, budget_gb: float | None) -> None:
    """Write the report of any rows into a folder; a budget is in GiB, None for no bound."""
    with FileLock(folder / LOCK):
        _write(folder, rows, title, budget_gb)


def _write(folder: Path, rows: Sequence[Row], title: str, budget_gb: float | None) -> None:
    """Replace each file, whole or not at all."""
    for ending, text in {
        "html": as_page(rows, title, budget_gb),
        "csv": as_csv(rows),
        "md": as_note(rows, title, budget_gb),
        "json": as_json(rows, title, budget_gb),
    }.items():
        write_text(folder / f"sweep.{ending}", text)


def as_note(rows: Sequence[Row], title: str, budget_gb: float | None) -> str:
    """Return the report in Markdown: the best with their commands, what was found, the table."""
    found = [*caveats(rows), *(sentence(split, rows) for split in splits(rows))]
    parts = [
        f"# {literal(title)}",
        *map(_note_of_best, best(rows, budget_gb)),
        *map(literal, found),
        as_markdown(rows),
        f"{PEAK}\n",
    ]
    return "\n\n".join(parts)


def _note_of_best(chosen: Best) -> str:
    if chosen.row is None:
        return f"**{chosen.title}**: {literal(chosen.why)}."
    return f"**{chosen.title}**: {literal(chosen.row.name)}, {literal(chosen.why)}\n\n    {chosen.row.command}"


def as_json(rows: Sequence[Row], title: str, budget_gb: float | None) -> str:
    """Return the report for programs; what is not finite is null."""
    content = {
        "title": title,
        "memory_budget_gb": budget_gb,
        "best": [_json_of_best(chosen) for chosen in best(rows, budget_gb)],
        "pareto_front": [row.name for row in pareto_front(rows)],
        "caveats": caveats(rows),
        "equal_training": [
            {
                "jobs": [row.name for row in split.rows],
                "effective_batch": split.effective_batch,
                "largest_difference": split.difference,
                "coincide": split.coincide,
            }
            for split in splits(rows)
        ],
        "differing_settings": differing(rows),
        "rows": [values(row) | {"folder": row.folder, "command": row.command} for row in rows],
    }
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def _json_of_best(chosen: Best) -> dict[str, Any]:
    row = chosen.row
    return {
        "title": chosen.title,
        "why": chosen.why,
        "job": row.name if row else None,
        "command": row.command if row else None,
    }
