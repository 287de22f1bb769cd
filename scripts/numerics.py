"""Compare fp32, fp16, fp16_scaled and bf16 on the gradient of one step of a trained run."""

import _root  # noqa: F401  isort: skip
import argparse
from dataclasses import asdict
from pathlib import Path

from train.cli.command import Parser, command, defer_signals

MOST = 65536  # sequences


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, as runs/default, a phase's in it, or a checkpoint")
    parser.add_argument("--sequences", type=int, help="size of the batch (default: a step of the run)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for the same as JSON")
    options = parser.parse_args()
    if options.sequences is not None and not 1 <= options.sequences <= MOST:
        parser.error(f"--sequences is 1 to {MOST}")
    return options


def main() -> None:
    """Compare, print, and write what was asked for."""
    options = arguments()
    with defer_signals():  # torch is imported only now
        from train.bench.numerics import as_text, numerics
        from train.cli.output import report_path, write_report

    path = report_path(options.json) if options.json else None
    result = numerics(options.run, options.sequences)
    print(as_text(result))
    if path:
        write_report(path, asdict(result))
        print(f"\nwrote {path}")


if __name__ == "__main__":
    command(main)
