"""Puts a comparison of precisions into tables and sentences."""

from collections.abc import Sequence

from train.numerics import Numerics
from train.numerics_rows import Row
from train.text_table import table


def as_text(result: Numerics) -> str:
    """Return the comparison as plain tables and sentences."""
    head = (
        f"{result.checkpoint}, step {result.step}: {result.sequences} sequences, {result.tokens} tokens, "
        f"{result.targets} targets\n{result.device}, torch {result.torch}: {result.how}"
    )
    tables = [
        part_table("relative error of the gradient", result.rows, "error", "{:.2e}"),
        part_table("cosine with the gradient of fp32", result.rows, "cosine", "{:.6f}"),
        part_table("share of the gradient flushed to zero", result.rows, "flushed", "{:.2%}"),
    ]
    return "\n\n".join([head, summary_table(result.rows), *tables, "\n".join(row.verdict for row in result.rows)])


def summary_table(rows: Sequence[Row]) -> str:
    """Return a line a precision: loss and range."""
    titles = ["precision", "scale", "loss", "difference", "largest activation", "dtype's max"]
    lines = [
        [
            row.name,
            f"{row.scale:.0f}",
            f"{row.loss:.6f}",
            f"{row.loss_difference:+.1e}",
            f"{row.largest_activation:.4g}",
            f"{row.dtype_max:.4g}",
        ]
        for row in rows
    ]
    return table([titles, *lines], right=range(1, len(titles))).rstrip()


def part_table(title: str, rows: Sequence[Row], fact: str, form: str) -> str:
    """Return a line for each part of the network, a column for each precision."""
    lines = [[part, *(form.format(getattr(row.parts[part], fact)) for row in rows)] for part in rows[0].parts]
    return table([[title, *(row.name for row in rows)], *lines], right=range(1, 1 + len(rows))).rstrip()
