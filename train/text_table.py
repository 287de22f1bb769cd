"""Tables of plain text, and bytes as their cells say them."""

from collections.abc import Iterator, Sequence

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
    return "\n".join("  ".join(cells) for cells in _padded(lines))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return lines as GitHub's kind of table, aligned as well; the first is its head."""
    head, *rows = _padded(lines)
    rule = ["-" * len(cell) if n == 0 else "-" * (len(cell) - 1) + ":" for n, cell in enumerate(head)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def _padded(lines: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield lines whose cells are as wide as their columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        yield [cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(cells)]
