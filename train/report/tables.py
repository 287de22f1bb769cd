"""Print rows as CSV, Markdown, a console table and single lines."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from train.cli.output import format_table
from train.report.findings import Findings
from train.report.rows import Row

PEAK_NOTE = (
    "Peak GiB is the most memory the process used while a phase trained: its resident size on a CPU (on a Mac, "
    "since the process started), or the memory of the Metal driver at a logged step on mps."
)
WIDE = 72  # characters that the console's table needs for all of its columns


@dataclass(frozen=True)
class Column:
    """A column of every table: its key for programs, its title, and for numbers their format and a phrase."""

    key: str
    title: str
    format: str = ""
    phrase: str = "{}"


COLUMNS = (
    Column("job", "job"),
    Column("status", "status"),
    Column("val_loss", "val loss", "{:.4f}", "val loss {}"),
    Column("bits_per_byte", "bits per byte", "{:.3f}", "{} bits per byte"),
    Column("by_source", "val loss by source"),
    Column("tokens", "tokens", "{:,}", "{} tokens"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}", "{} tokens/s"),
    Column("peak_memory_gib", "peak GiB", "{:.2f}", "{} GiB"),
    Column("minutes", "minutes", "{:.1f}", "{} minutes"),
    Column("exit_code", "exit code"),
    Column("reason", "reason"),
    Column("overrides", "overrides"),
)


def list_values(row: Row) -> dict[str, Any]:
    """Return the values of a row's columns, None where one is unknown."""
    named = vars(row) | {"job": row.name, "overrides": " ".join(row.overrides)}
    return {column.key: named[column.key] for column in COLUMNS}


def format_cells(row: Row) -> dict[Column, str]:
    """Return the text of a row's columns, empty where a number is unknown."""
    values = list_values(row)
    return {c: "" if values[c.key] is None else (c.format or "{}").format(values[c.key]) for c in COLUMNS}


def choose_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns that are not empty in every row."""
    cells = [format_cells(row) for row in rows]
    return [column for column in COLUMNS if any(of[column] for of in cells)]


def format_csv(rows: Sequence[Row]) -> str:
    """Return unrounded numbers and full names; no cell is a formula to a spreadsheet."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.key for column in COLUMNS)
    for row in rows:
        values = list_values(row).values()
        writer.writerow(
            f"'{v}" if isinstance(v, str) and v.startswith(("=", "+", "-", "@")) else v for v in values
        )
    return file.getvalue()


def format_markdown(findings: Findings) -> str:
    """Return a table in GitHub's Markdown."""
    columns = choose_columns(findings.rows)
    lines = [["#", *(column.title for column in columns)]]
    for row, number in findings.numbers.items():
        cells = format_cells(row)
        lines.append([str(number), *(escape_markdown(cells[column]) for column in columns)])
    right = [0, *(n for n, column in enumerate(columns, 1) if column.format)]
    return format_table(lines, right=right, markdown=True)


def escape_markdown(text: str) -> str:
    """Escape Markdown's special characters."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)


def draw_console_table(findings: Findings, width: int) -> Table:
    """Return rich's table of the jobs: their status and numbers, in a narrow console their names alone."""
    cells = {row: format_cells(row) for row in findings.rows}
    columns = [c for c in COLUMNS if c.key in ("job", "status") or (c.format and c.key != "tokens")]
    columns = columns if width >= WIDE else columns[:1]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("#", justify="right", no_wrap=True)
    drawn.add_column(columns[0].title, overflow="fold")
    for column in columns[1:]:
        needed = max(map(len, [*column.title.split(), *(of[column] for of in cells.values())]))
        drawn.add_column(column.title, justify="right" if column.format else "left", width=needed)
    for row, of in cells.items():
        drawn.add_row(str(findings.numbers[row]), *(Text(of[column]) for column in columns))
    return drawn


def describe_row(row: Row) -> str:
    """Return a run in a line, such as `01-B2: finished, val loss 4.3210, 11,303 tokens/s`."""
    return f"{row.name}: {', '.join([row.status, *format_facts(row), *filter(None, [row.reason])])}"


def format_facts(row: Row) -> list[str]:
    """Return the known numbers of a row as phrases."""
    return [column.phrase.format(text) for column, text in format_cells(row).items() if text and column.format]
