"""Print tables and durations, and write a command's report to a new JSON file."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from niels_gpt.errors import ConfigError
from niels_gpt.storage import write_text

MIB = 2**20


def format_mib(size: int | None) -> str:
    """Return bytes in MiB, a dash for None."""
    return "-" if size is None else f"{size / MIB:,.0f}"


def format_table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), markdown: bool = False) -> str:
    """Return rows in columns, the first as the head; columns numbered in `right` are aligned to the right.

    The last cell of a short row goes into the last column.
    """
    right, width = set(right), max(map(len, rows))
    drawn = Table(box=box.MARKDOWN if markdown else None, pad_edge=markdown, show_header=markdown)
    head, *lines = ([*row[:-1], *[""] * (width - len(row)), row[-1]] for row in rows)
    for n, title in enumerate(head):
        drawn.add_column(Text(title), justify="right" if n in right else "left", no_wrap=True)
    for cells in lines if markdown else [head, *lines]:
        drawn.add_row(*map(Text, cells))
    console = Console(width=10**6, color_system=None)
    with console.capture() as capture:
        console.print(drawn)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines() if line.strip())


def require_new_file(name: str) -> Path:
    """Return the path that an argument names. ConfigError if nothing new can be made there."""
    path = Path(name)
    if path.exists() or not path.parent.is_dir():
        reason = "already exists" if path.exists() else f"cannot be created: there is no folder {path.parent}"
        raise ConfigError(f"{path} {reason}", "choose a new name in an existing folder")
    return path


def format_json(content: Any) -> str:
    """Return content as JSON, with null for nan and inf, which JSON lacks."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def write_result(path: Path, report: Any) -> None:
    """Write `report` to a new JSON file, and say so."""
    write_text(path, format_json(report))
    print(f"wrote {path}")


def add_json_flag(parser: ArgumentParser) -> None:
    """Add --json, for `report`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else on stdout")


def add_report_flags(parser: ArgumentParser) -> None:
    """Add --json and --out, for `report`."""
    add_json_flag(parser)
    parser.add_argument("--out", type=require_new_file, metavar="FILE", help="a new file for the result, as JSON")


def report(as_json: bool, work: Callable[[], Any], out: Path | None = None) -> None:
    """Do the work, which prints for people and returns its result, and write that to a new file if there is one.

    With `as_json`, stdout gets the result alone, and stderr what is for people.
    """
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        result = work()
        if out:
            write_result(out, result)
    if as_json:
        print(format_json(result), end="")


def format_duration(seconds: float) -> str:
    """Return a duration as people say it, such as "4 min 9 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
