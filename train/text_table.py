"""Tables of plain text, and bytes as their cells say them."""

from collections.abc import Sequence

MIB = 2**20


def mib(size: int | None) -> str:
    """Return bytes in MiB, a dash for None."""
    return "-" if size is None else f"{size / MIB:,.0f}"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; a short row's last cell may be as wide as it likes."""
    full = [row for row in rows if len(row) == max(map(len, rows))]
    widths = [max(len(row[n]) for row in full) for n in range(len(full[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )
