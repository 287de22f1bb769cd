"""List the token caches and tokenizers in a cache folder, and remove those that are old or unused."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line
from niels_gpt.storage import measure_size
from niels_gpt.untrusted import UnreadableFile, read_json
from train.artifacts.paths import DATA
from train.cli.command import Parser, at_least
from train.cli.output import add_json_flag, format_table, report
from train.report.rows import PHASES, find_runs

DAY = 24 * 60 * 60.0  # seconds


@dataclass(frozen=True)
class Entry:
    """A token cache, or the file of a tokenizer; `runs` refer to it, and `days` have passed since its last use."""

    path: str
    bytes: int
    days: float
    runs: list[str]
    location: Path = field(repr=False)


def main() -> None:
    """List the caches, or remove some of them."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("cache"), help="the folder (default cache)")
    parser.add_argument("--unused", action="store_true", help="remove what no run refers to")
    parser.add_argument("--older-than", type=at_least(0), metavar="DAYS", help="remove what was not used since")
    parser.add_argument("--runs", type=Path, help="where the runs are (default runs)")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    add_json_flag(parser)
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise ConfigError(f"there is no folder {options.folder}", "name the folder of data.cache_dir")
    if options.runs and not options.runs.is_dir():  # or a misspelt folder would make every cache unused
        raise ConfigError(f"there is no folder {options.runs}", "name the folder of the runs")

    prune = options.unused or options.older_than is not None

    def list_or_prune() -> list[dict[str, Any]]:
        entries = list(list_entries(options.folder, options.runs or Path("runs")))
        if prune:
            entries = [entry for entry in entries if entry.days >= (options.older_than or 0)]
            entries = [entry for entry in entries if not (options.unused and entry.runs)]
        lines = [("cache", "MB", "days unused", "runs")]
        lines += [(e.path, f"{e.bytes / 1e6:,.1f}", f"{e.days:.0f}", ", ".join(e.runs)) for e in entries]
        print(format_table(lines, right=(1, 2)), end="")
        if prune and not entries:
            print("nothing to remove")
        elif prune and not remove(entries, ask=not options.yes):
            return []
        return [{name: vars(entry)[name] for name in ("path", "bytes", "days", "runs")} for entry in entries]

    report(options.json, list_or_prune)


def list_entries(folder: Path, runs: Path) -> Iterator[Entry]:
    """Yield what is in a cache folder. A run also refers to the tokenizer of its token caches."""
    users: dict[Path, list[str]] = {}
    for run in find_runs(runs):
        for cache in {cache for phase in PHASES for cache in _read_object(run / phase / DATA).get("caches", [])}:
            users.setdefault(Path(cache), []).append(escape_line(str(run)))
    tokenizers: dict[str, set[str]] = {}
    for path in sorted(folder.glob("[!.]*/")):
        if (hash := _read_object(path / "meta.json").get("tokenizer_sha256")) is not None:
            found = users.get(path.resolve(), [])
            tokenizers.setdefault(str(hash), set()).update(found)
            yield _make_entry(path, measure_size(path), found)
    for path in sorted(folder.glob("tokenizer-*.json")):
        hash_path = path.with_suffix(".sha256")
        hash = hash_path.read_text(encoding="utf-8", errors="replace") if hash_path.exists() else ""
        yield _make_entry(path, path.stat().st_size, sorted(tokenizers.get(hash, ())))


def _make_entry(path: Path, size: int, runs: list[str]) -> Entry:
    days = (time.time() - path.stat().st_mtime) / DAY
    return Entry(escape_line(str(path)), size, round(days, 1), runs, path)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is none."""
    try:
        content = read_json(path)
    except UnreadableFile:
        return {}
    return content if isinstance(content, dict) else {}


def remove(entries: Sequence[Entry], *, ask: bool) -> bool:
    """Remove entries, after asking; return whether they were removed."""
    total = f"{len(entries)} entries, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB"
    if ask and not sys.stdin.isatty():
        raise ConfigError(f"{total} would be removed, and there is no terminal to ask", "add --yes")
    if ask:
        print(f"Remove {total}? They can be built again. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):  # Ctrl-D gives an empty line
            print("nothing removed")
            return False
    for entry in entries:
        if entry.location.is_dir():
            shutil.rmtree(entry.location)
        else:
            entry.location.unlink()
            entry.location.with_suffix(".sha256").unlink(missing_ok=True)
    print(f"removed {total}")
    return True
