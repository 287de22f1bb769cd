"""Examine this machine: what it is, whether it computes correctly, what a step costs."""

import _root  # noqa: F401  isort: skip
import argparse
from pathlib import Path

from train.cli.command import Parser, command, defer_signals
from train.config.hydra_errors import compose_run

FILE = "doctor.json"
EXAMPLE = "example: python scripts/doctor.py model=base model.T=512 train.B=8 train.accum_steps=1 --steps 5"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument(
        "overrides", nargs="*", help="settings as of scripts/train.py, such as model=base train.B=8"
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps by the clock, a variant (default 3)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="a new file (default doctor.json, doctor-2.json)"
    )
    options = parser.parse_intermixed_args()
    if options.steps < 1:
        parser.error("--steps is at least 1")
    return options


def main() -> None:
    """Examine the machine, print what is found, write it."""
    options = arguments()
    cfg = compose_run(options.overrides)
    with defer_signals():  # torch is imported only now
        from niels_gpt.storage import unused
        from train.cli.output import report_path, write_report
        from train.hardware.doctor import examine
    path = report_path(options.json) if options.json else unused(FILE)
    write_report(path, examine(cfg, options.steps, print))
    print(f"wrote {path}")


if __name__ == "__main__":
    command(main)
