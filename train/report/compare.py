"""Choose the runs to compare, and the new folder for the report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from niels_gpt.errors import ConfigError
from niels_gpt.printable import printable
from niels_gpt.storage import numbered
from train.report.rows import Row, is_run, read_row
from train.report.write import read_rows

FOLDER = "compare"


def compared(folders: Sequence[Path]) -> list[Row]:
    """Return the rows of run folders, and of all jobs of a sweep's folder; each run once, each under its own name.

    Raises:
        ConfigError: a line per folder that holds no run.
    """
    found = {folder: [*([read_row(folder)] if is_run(folder) else []), *_jobs(folder)] for folder in folders}
    if missing := [folder for folder, rows in found.items() if not rows]:
        raise ConfigError(
            "\n".join(f"{folder}: {_what_is_there(folder)}" for folder in missing),
            "name run folders, as runs/default, or a sweep's folder with runs in it",
        )
    once = {Path(row.folder).resolve(): row for rows in found.values() for row in rows}
    return _named_apart(list(once.values()))


def _jobs(folder: Path) -> list[Row]:
    return read_rows(folder) if folder.is_dir() else []


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    return "no run is in this folder" if folder.is_dir() else "not a folder"


def _named_apart(rows: list[Row]) -> list[Row]:
    """Return rows in which those of the same name are called by their folders."""
    names = Counter(row.name for row in rows)
    return [row if names[row.name] == 1 else replace(row, name=printable(row.folder)) for row in rows]


def new_folder(asked: Path | None) -> Path:
    """Make the folder `asked` for, or compare, compare-2, ...: whichever is not there yet.

    Raises:
        ConfigError: `asked` is there already.
    """
    for path in [asked] if asked else numbered(FOLDER):
        try:
            path.mkdir(parents=asked is not None)
            return path
        except FileExistsError:
            continue
    raise ConfigError(f"{asked or FOLDER} is there already", "give --out another name, or none")
