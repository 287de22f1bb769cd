"""Races optimizer steps of this project against others on this machine; measures how cost and memory grow."""

import _root  # noqa: F401  isort: skip
import argparse
from typing import Any

from train.bench.options import arguments
from train.cli import command, deferred_signals


def carried_out(options: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked, print it, and return it."""
    from train.bench.grow import Effort
    from train.bench.modes import grown, overheads, raced, stayed
    from train.bench.race import Course

    names, effort = options.contestants, (options.rounds, options.steps, options.warmup, options.threads)
    if options.grow:
        return grown(options.shapes[0], options.grow, options.factors, Effort(*effort), options.figure, print)
    if options.steady:
        return stayed(options.shapes, names, options.steady, options.threads, print)
    if options.overhead:
        return overheads(options.shapes, Effort(*effort), print)
    return raced([Course(shape, *effort) for shape in options.shapes], names, options.reference, print)


def main() -> None:
    """Check, carry out, and write what was asked for."""
    options = arguments(__doc__)
    with deferred_signals():  # torch is imported only now
        from train.bench.modes import require_racers
        from train.report_file import report_path, write_report
    require_racers({*options.contestants, options.reference}, options.shapes)
    path = report_path(options.json) if options.json else None
    report = carried_out(options)
    if path:
        write_report(path, report)
        print(f"wrote {path}")


if __name__ == "__main__":
    command(main)
