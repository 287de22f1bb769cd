"""Measure this machine and its precisions: niels_gpt doctor and niels_gpt numerics."""

from dataclasses import asdict
from pathlib import Path

from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_report_flags, report
from train.config import compose_plan

EXAMPLE = "example: niels_gpt doctor model=base model.T=512 train.B=8 train.accum_steps=1 --steps 5"


def run_doctor() -> None:
    """Examine this machine: its hardware, its arithmetic, and the cost of a step."""
    parser = Parser(description=run_doctor.__doc__, epilog=EXAMPLE)
    parser.add_argument("overrides", nargs="*", help="settings of training, such as model=base train.B=8")
    parser.add_argument(
        "--steps", metavar="N", type=at_least(1), default=3, help="timed steps per variant (default 3)"
    )
    add_report_flags(parser)
    options = parser.parse_intermixed_args()
    cfg = compose_plan(options.overrides)[0]
    with defer_signals():  # imports torch, which takes seconds
        from train.hardware.doctor import examine_machine
    report(options.json, lambda: examine_machine(cfg, options.steps, print), options.out)


def run_numerics() -> None:
    """Compare fp32, fp16, fp16_scaled and bf16 on the gradient of one step of a trained run."""
    parser = Parser(description=run_numerics.__doc__)
    parser.add_argument("run", type=Path, help="a run folder, a phase's folder in it, or a checkpoint")
    parser.add_argument(
        "--sequences", metavar="N", type=at_least(1), help="sequences in the batch (default: a step of the run)"
    )
    add_report_flags(parser)
    options = parser.parse_args()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.numerics import compare_precisions, format_comparison

    def compare() -> object:
        result = compare_precisions(options.run, options.sequences)
        print(format_comparison(result))
        return asdict(result)

    report(options.json, compare, options.out)
