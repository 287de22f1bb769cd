"""Read the runs to compare, and make the new folder for the report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line
from niels_gpt.storage import list_numbered_paths
from train.report.rows import Row, is_run, read_row
from train.report.write import read_rows

FOLDER = "compare"


def read_runs(folders: Sequence[Path]) -> list[Row]:
    """Return the rows of run folders and of all jobs in sweep folders; each run once, under a name that differs.

    Raises:
        ConfigError: a line per folder that holds no run.
    """
    rows: dict[Path, Row] = {}
    missing = []
    for folder in folders:
        found = [read_row(folder)] if is_run(folder) else []
        found += read_rows(folder) if folder.is_dir() else []
        rows |= {Path(row.folder).resolve(): row for row in found}
        if not found:
            why = "holds no run" if folder.is_dir() else "not a folder" if folder.exists() else "no such folder"
            missing.append(f"{folder}: {why}")
    if missing:
        raise ConfigError("\n".join(missing), "name run folders, such as runs/default, or a sweep's folder")
    names = Counter(row.name for row in rows.values())
    return [row if names[row.name] == 1 else replace(row, name=escape_line(row.folder)) for row in rows.values()]


def make_folder(asked: Path | None) -> Path:
    """Make the folder `asked` for, or the first of compare, compare-2, ... that does not exist.

    Raises:
        ConfigError: `asked` exists.
    """
    for path in [asked] if asked else list_numbered_paths(FOLDER):
        try:
            path.mkdir(parents=asked is not None)
            return path
        except FileExistsError:
            continue
    raise ConfigError(f"{asked or FOLDER} already exists", "give --out another name, or omit it")
