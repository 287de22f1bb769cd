"""Races optimizer steps of this project against others on this machine: time, memory, share of its limit."""

import _root  # noqa: F401  isort: skip
import argparse
import os
from collections.abc import Collection
from pathlib import Path

from niels_gpt.errors import ConfigError
from train.arguments import Arguments
from train.cli import command, deferred_signals


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(description=__doc__, epilog="example: python scripts/bench.py small base")
    parser.add_argument("shapes", nargs="*", default=["small"], help="small, base (default: small)")
    parser.add_argument(
        "--contestants", default="ours,bare,hf", help="separated by commas (default: ours,bare,hf)"
    )
    parser.add_argument("--reference", help="whom the others are compared with (default: the last one)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default 3)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps in a turn (default 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for all of it")
    options = parser.parse_args()
    if min(options.rounds, options.steps, options.warmup, options.threads) < 1:
        parser.error("--rounds, --steps, --warmup and --threads are at least 1")
    return options


def require_known(what: str, asked: Collection[str], known: Collection[str]) -> None:
    """Refuse names that nothing has."""
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"there is no {what} {', '.join(unknown)}", f"choose among {', '.join(known)}")


def main() -> None:
    """Race, print, and write what was asked for."""
    options = arguments()
    with deferred_signals():  # torch is imported only now
        from train.bench.contestants import CONTESTANTS
        from train.bench.race import Course, race
        from train.bench.shapes import SHAPES
        from train.bench.tables import as_json, as_table
        from train.doctor_text import report_path, write_report
    names = options.contestants.split(",")
    reference = options.reference or names[-1]
    require_known("contestant", [*names, reference], CONTESTANTS)
    require_known("shape", options.shapes, SHAPES)
    path = report_path(options.json) if options.json else None
    results = []
    for shape in options.shapes:
        course = Course(shape, options.rounds, options.steps, options.warmup, options.threads)
        found = race(course, names, print)
        print(as_table(found, reference))
        results.append(as_json(found, reference))
    if path:
        write_report(path, {"races": results})
        print(f"wrote {path}")


if __name__ == "__main__":
    command(main)
