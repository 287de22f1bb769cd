"""The command line of the benchmark, which needs no torch to be read."""

import argparse
import os
from pathlib import Path

from train.cli import Parser

EXAMPLES = """examples:
  python scripts/bench.py small base
  python scripts/bench.py small --contestants ours-ckpt-compile,ours-ckpt,ours
  python scripts/bench.py --grow T L --figure growth.svg
  python scripts/bench.py small --steady 500"""
CONTESTANTS = (
    "ours, bare, hf, each also with -compile, -ckpt, -ckpt-compile, ours and bare with -muon; separated by commas "
    "(default: ours,bare,hf; ours,ours-ckpt with --steady)"
)
GROW = "in place of a race: how cost grows with these sizes of the shape (default: all four)"
OVERHEAD = "in place of a race: what the checks of a step take, and saving 25 million parameters"
STEADY = "in place of a race: whether memory grows over so many steps"


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line; what was not said and depends on the mode is filled in."""
    parser = Parser(description=description, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help="small, base, middle (default: small; middle with --grow)")
    parser.add_argument("--contestants", help=CONTESTANTS)
    parser.add_argument("--reference", help="whom the others are compared with (default: the last one)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 3; 1 with --grow)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps in a turn (default 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for all of it")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--grow", nargs="*", choices="TBLV", metavar="T|B|L|V", help=GROW)
    modes.add_argument("--steady", type=int, metavar="STEPS", help=STEADY)
    modes.add_argument("--overhead", action="store_true", help=OVERHEAD)
    parser.add_argument("--factors", default="0.25,0.5,1,2,4", help="of --grow: times the shape's own size")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="of --grow: an .svg or .png, made anew")
    options = parser.parse_intermixed_args()
    if wrong := misplaced(options):
        parser.error(wrong)
    complete(options)
    if wrong := problem(options):
        parser.error(wrong)
    options.factors = [float(factor) for factor in options.factors.split(",")]
    return options


def misplaced(options: argparse.Namespace) -> str | None:
    """Return what was said that this mode takes no notice of."""
    alone = "--grow" if options.grow is not None else "--overhead" if options.overhead else None
    if alone and options.contestants is not None:
        return f"--contestants {options.contestants}: {alone} has none; it goes with a race and --steady"
    if (alone or options.steady is not None) and options.reference is not None:
        return f"--reference {options.reference}: it goes with a race, not with {alone or '--steady'}"
    return None


def complete(options: argparse.Namespace) -> None:
    """Fill in what depends on the mode."""
    growing = options.grow is not None
    options.grow = options.grow or (list("TBLV") if growing else None)
    options.shapes = options.shapes or ["middle" if growing else "small"]
    options.rounds = (1 if growing else 3) if options.rounds is None else options.rounds
    options.contestants = (options.contestants or ("ours,ours-ckpt" if options.steady else "ours,bare,hf")).split(
        ","
    )
    options.reference = options.reference or options.contestants[-1]


def problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options."""
    figure = options.figure
    if min(options.rounds, options.steps, options.warmup, options.threads) < 1:
        return "--rounds, --steps, --warmup and --threads are at least 1"
    if options.steady is not None and options.steady < 10:
        return f"--steady {options.steady}: it takes at least 10 steps"
    if options.reference not in options.contestants:
        return (
            f"--reference {options.reference}: the contestants are {','.join(options.contestants)}; add it there"
        )
    if options.grow and len(options.shapes) > 1:
        return "--grow takes one shape, whose sizes are varied one at a time"
    if not all(_is_positive(factor) for factor in options.factors.split(",")):
        return f"--factors {options.factors}: they are numbers above 0, separated by commas"
    if figure and not (options.grow and figure.suffix in (".svg", ".png")):
        return f"--figure {figure}: it goes with --grow, and ends in .svg or .png"
    if figure and not figure.absolute().parent.is_dir():
        return f"--figure {figure}: there is no folder {figure.parent}"
    return None


def _is_positive(text: str) -> bool:
    """Return whether a text is a number above 0."""
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
