"""Compare fp32, fp16, fp16_scaled and bf16 on the gradient of one step of a trained run."""

import _root  # noqa: F401  isort: skip
from dataclasses import asdict
from pathlib import Path

from train.cli.command import Parser, at_least, defer_signals, run_command
from train.cli.output import require_new_file, write_report


def main() -> None:
    """Compare, print, and write the report if asked."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, a phase's folder in it, or a checkpoint")
    parser.add_argument(
        "--sequences", metavar="N", type=at_least(1), help="sequences in the batch (default: a step of the run)"
    )
    parser.add_argument("--json", type=require_new_file, metavar="FILE", help="a new file for the results")
    options = parser.parse_args()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.numerics import compare_precisions, format_comparison

    result = compare_precisions(options.run, options.sequences)
    print(format_comparison(result))
    if options.json:
        write_report(options.json, asdict(result))


if __name__ == "__main__":
    run_command(main)
