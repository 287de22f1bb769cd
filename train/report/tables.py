"""Print rows as CSV, Markdown, a console table and single lines."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from train.cli.output import table
from train.report.findings import GIB, labels
from train.report.rows import Row

FORMULA = ("=", "+", "-", "@")
PEAK = (
    "Peak GiB is the most memory that the process held while a phase trained. On a CPU that is its resident size "
    "(on a Mac since the process began), on mps what the Metal driver held at a logged step."
)


@dataclass(frozen=True)
class Column:
    """A column of every table: its key for programs, its title; for numbers their form, and how one is said."""

    key: str
    title: str
    form: str = ""
    said: str = "{}"


COLUMNS = (
    Column("job", "job"),
    Column("status", "status"),
    Column("val_loss", "val loss", "{:.4f}", "val loss {}"),
    Column("bits_per_byte", "bits per byte", "{:.3f}", "{} bits per byte"),
    Column("by_source", "val loss by source"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}", "{} tokens/s"),
    Column("peak_memory_gib", "peak GiB", "{:.2f}", "{} GiB"),
    Column("minutes", "minutes", "{:.1f}", "{} minutes"),
    Column("exit_code", "exit code", "{:d}", "exit code {}"),
    Column("reason", "reason"),
    Column("overrides", "overrides"),
)


def values(row: Row) -> dict[str, Any]:
    """Return what the columns show of a row, as it is."""
    return {
        "job": row.name,
        "status": row.status,
        "val_loss": row.val_loss,
        "bits_per_byte": row.bits_per_byte,
        "by_source": row.by_source,
        "tokens_per_second": row.tokens_per_second,
        "peak_memory_gib": None if row.peak_memory is None else row.peak_memory / GIB,
        "minutes": None if row.seconds is None else row.seconds / 60,
        "exit_code": row.exit_code,
        "reason": row.reason,
        "overrides": " ".join(row.overrides),
    }


def cells(row: Row) -> dict[Column, str]:
    """Return what the columns show of a row, for a person: a number that is not there is empty."""
    of = values(row)
    return {
        column: "" if of[column.key] is None else (column.form or "{}").format(of[column.key])
        for column in COLUMNS
    }


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns that have something to show of any row."""
    return [column for column in COLUMNS if any(cells(row)[column] for row in rows)]


def as_csv(rows: Sequence[Row]) -> str:
    """Return a line a row, whole numbers and names; no cell is a formula to a spreadsheet."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.key for column in COLUMNS)
    writer.writerows([_harmless(value) for value in values(row).values()] for row in rows)
    return file.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def as_markdown(rows: Sequence[Row]) -> str:
    """Return GitHub's kind of table."""
    columns = columns_of(rows)
    lines = [[str(n), *(literal(cells(row)[column]) for column in columns)] for n, row in enumerate(rows, 1)]
    right = [0, *(n for n, column in enumerate(columns, 1) if column.form)]
    return table([["#", *(column.title for column in columns)], *lines], right=right, markdown=True)


def literal(text: str) -> str:
    """Return text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)


def console_table(rows: Sequence[Row]) -> Table:
    """Return rich's table, legible from 80 columns on: overrides and reasons are left to lines and files."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("#", justify="right", no_wrap=True)
    drawn.add_column("job", overflow="fold")
    drawn.add_column("status", no_wrap=True)
    shown = [column for column in COLUMNS if column.form and column.key != "exit_code"]
    for column in shown:
        widest = max(map(len, [*column.title.split(), *(cells(row)[column] for row in rows)]))
        drawn.add_column(column.title, justify="right", width=widest)
    for number, (row, label) in enumerate(labels(rows).items(), 1):
        job = Text(label.replace(",", ", "))  # wraps between overrides
        drawn.add_row(str(number), job, _standing(row), *(cells(row)[column] for column in shown))
    return drawn


def _standing(row: Row) -> str:
    return f"{row.status} ({row.exit_code})" if row.exit_code else row.status


def one_line(row: Row, rows: Sequence[Row]) -> str:
    """Return what became of one of the runs, such as `train.B=2: finished, val loss 4.3210, 11,303 tokens/s`."""
    return f"{labels(rows)[row]}: {', '.join([row.status, *facts(row), *filter(None, [row.reason])])}"


def facts(row: Row) -> list[str]:
    """Return the numbers of a row as they are said; an exit code only where it is bad news."""
    of = cells(row).items()
    return [c.said.format(text) for c, text in of if text and c.form and (c.key != "exit_code" or row.exit_code)]
