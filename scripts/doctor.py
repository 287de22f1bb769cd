"""Examine this machine: its hardware, its arithmetic, and the cost of a step."""

import _root  # noqa: F401  isort: skip
from niels_gpt.storage import find_unused_path
from train.cli.command import Parser, at_least, defer_signals, run_command
from train.cli.output import write_report
from train.config.load import compose_run

EXAMPLE = "example: python scripts/doctor.py model=base model.T=512 train.B=8 train.accum_steps=1 --steps 5"


def main() -> None:
    """Examine the machine, print the report and write it to a new doctor.json, then doctor-2.json."""
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("overrides", nargs="*", help="settings of scripts/train.py, such as model=base train.B=8")
    parser.add_argument(
        "--steps", metavar="N", type=at_least(1), default=3, help="timed steps per variant (default 3)"
    )
    options = parser.parse_intermixed_args()
    cfg = compose_run(options.overrides)
    with defer_signals():  # imports torch, which takes seconds
        from train.hardware.doctor import examine_machine
    write_report(find_unused_path("doctor.json"), examine_machine(cfg, options.steps, print))


if __name__ == "__main__":
    run_command(main)
