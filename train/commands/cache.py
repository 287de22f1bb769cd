"""List the token caches and tokenizers in a cache folder, and remove those that are old or unused."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line
from niels_gpt.storage import measure_size
from niels_gpt.untrusted import UnreadableFile, read_json, read_text
from niels_gpt.weights.paths import DATA
from train.cli.command import Parser, at_least
from train.cli.output import add_json_flag, format_table, report

DAY = 24 * 60 * 60.0  # seconds
KEY = "[0-9a-f]" * 16  # at the end of the name of each cache
GRACE = 1  # days that a run may take to build its caches, before it refers to any
STOPPED = "(of a stopped build, to go on with)"
SINCE = f"remove what was not used for so many days ({GRACE} with --unused alone, for runs that are starting)"


@dataclass(frozen=True)
class Entry:
    """A token cache, what a killed build left of one, or the file of a tokenizer.

    `runs` refer to it, and `days` have passed since its last use.
    """

    path: Path
    bytes: int
    days: float
    runs: list[str]


def main() -> None:
    """List the caches, or remove some of them."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("cache"), help="the folder (default cache)")
    parser.add_argument("--unused", action="store_true", help="remove what no run refers to")
    parser.add_argument("--older-than", type=at_least(0), metavar="DAYS", help=SINCE)
    parser.add_argument("--runs", type=Path, help="where the runs are (default runs)")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    add_json_flag(parser)
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise ConfigError(f"there is no folder {options.folder}", "name the folder of data.cache_dir")
    runs = options.runs or Path("runs")
    if (options.unused or options.runs) and not runs.is_dir():  # or every cache would count as unused
        raise ConfigError(f"there is no folder {runs}", "name the folder of the runs: --runs FOLDER")
    prune = options.unused or options.older_than is not None
    least = GRACE if options.older_than is None else options.older_than

    def list_or_prune() -> list[dict[str, Any]]:
        entries = list(list_entries(options.folder, runs))
        if prune:
            entries = [e for e in entries if e.days >= least and not (options.unused and e.runs)]
        lines = [("cache", "MB", "days unused", "runs")]
        for e in entries:
            use = STOPPED if e.path.name.startswith(".") else ", ".join(e.runs)
            lines.append((escape_line(str(e.path)), f"{e.bytes / 1e6:,.1f}", f"{e.days:.0f}", use))
        nothing = f"nothing to remove with --older-than {least:g}" if prune else f"{options.folder} has no caches"
        print(format_table(lines, right=(1, 2)) if entries else nothing + "\n", end="")
        if prune and entries and not remove(options.folder, entries, ask=not options.yes):
            return []
        return [vars(entry) | {"path": escape_line(str(entry.path))} for entry in entries]

    report(options.json, list_or_prune)


def list_entries(folder: Path, runs: Path) -> Iterator[Entry]:
    """Yield what is in a cache folder. A run also refers to the tokenizer of its token caches.

    A cache's name says what it was made from, so a run that has moved, or its cache, is still known by it.
    """
    users: dict[str, set[str]] = {}
    for path in (path for child in runs.glob("*/") for path in child.rglob(f"*/{DATA}")):
        caches = _read_value(path, "caches")
        for cache in caches if isinstance(caches, list) else ():
            users.setdefault(Path(str(cache)).name, set()).add(escape_line(str(path.parent.parent)))
    tokenizers: dict[str, set[str]] = {}
    for path in _find_paths(folder, f"d*-*-{KEY}"):
        tokenizer = str(_read_value(path / "meta.json", "tokenizer_sha256"))
        tokenizers.setdefault(tokenizer, set()).update(users.get(path.name, ()))
        yield _make_entry(path, users.get(path.name, ()))
    for path in _find_paths(folder, f"tokenizer-{KEY}.json"):
        tokenizer = ""
        with suppress(UnreadableFile):
            tokenizer = read_text(path.with_suffix(".sha256"), 64)
        yield _make_entry(path, tokenizers.get(tokenizer, ()))
    parts = _find_paths(folder, f".d*-*-{KEY}.part")  # of builds that were killed
    left = [*(path for path in parts if not _is_being_built(path)), *_find_paths(folder, f".split-{KEY}.json")]
    yield from (_make_entry(path, ()) for path in left)


def _find_paths(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if not path.is_symlink()]


def _is_being_built(path: Path) -> bool:
    """Return whether a process holds the lock of a token cache that lies here in part."""
    try:
        with FileLock(path.with_suffix(".lock"), blocking=False):
            return False
    except Timeout:
        return True


def _make_entry(path: Path, runs: Iterable[str]) -> Entry:
    days = (time.time() - path.stat().st_mtime) / DAY
    return Entry(path, measure_size(path), round(days, 1), sorted(runs))


def _read_value(path: Path, key: str) -> Any:
    """Return a value of a JSON file, None if it is not there."""
    with suppress(UnreadableFile, KeyError, TypeError):
        return read_json(path)[key]


def remove(folder: Path, entries: Sequence[Entry], *, ask: bool) -> bool:
    """Remove entries of a folder, after asking; return whether they were removed."""
    total = f"{len(entries)} entries, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB"
    if ask and not sys.stdin.isatty():
        raise ConfigError(f"{total} would be removed, and there is no terminal to ask", "add --yes")
    if ask:
        print(f"Remove {total}? They can be built again. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):  # Ctrl-D gives an empty line
            print("nothing removed")
            return False
    # Renamed first, so that no run finds half of a cache, whenever this ends.
    with TemporaryDirectory(prefix=".removed-", dir=folder) as removed:
        for path in (entry.path for entry in entries):
            path.rename(Path(removed, path.name))
            path.with_suffix(".sha256").unlink(missing_ok=True)
    print(f"removed {total}")
    return True
