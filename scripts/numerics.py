"""Compare fp32, fp16, fp16_scaled and bf16 on the gradient of one step of a trained run."""

import _root  # noqa: F401  isort: skip
import argparse
from dataclasses import asdict
from pathlib import Path

from train.cli.command import Parser, defer_signals, run_command

MOST = 65536  # sequences


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, a phase's folder in it, or a checkpoint")
    parser.add_argument("--sequences", type=int, help="size of the batch (default: a step of the run)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for the results")
    options = parser.parse_args()
    if options.sequences is not None and not 1 <= options.sequences <= MOST:
        parser.error(f"--sequences must be 1 to {MOST}")
    return options


def main() -> None:
    """Compare, print, and write the report if asked."""
    options = parse_arguments()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.numerics import compare_precisions, format_comparison
        from train.cli.output import require_new_file, write_report

    path = require_new_file(options.json) if options.json else None
    result = compare_precisions(options.run, options.sequences)
    print(format_comparison(result))
    if path:
        write_report(path, asdict(result))
        print(f"\nwrote {path}")


if __name__ == "__main__":
    run_command(main)
