"""Benchmark optimizer steps on this machine: a race, growth with size, memory over time, a run's overhead."""

import _root  # noqa: F401  isort: skip
import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.cli.command import Parser, defer_signals, run_command
from train.config.suggest import require_known

if TYPE_CHECKING:
    from train.bench.race import TimingOptions

EXAMPLES = """examples:
  python scripts/bench.py race small --contestants ours-ckpt-compile,ours-ckpt,ours
  python scripts/bench.py growth T L --figure growth.svg
  python scripts/bench.py steady small --steps 500
  python scripts/bench.py overhead small"""
CONTESTANTS = """ours, bare, hf, each also with -compile, -ckpt, -ckpt-compile, ours and bare with -muon; separated
by commas (default: %(default)s)"""
AXES = "TBLV"
ONE_PROGRAM = "; all precisions are one program on the CPU; on a Mac scripts/doctor.py times each"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(metavar="race|growth|steady|overhead", required=True)

    mode = _add(modes, "race", run_race, "race contestants in turns, each turn in a fresh process")
    _add_shapes(mode)
    mode.add_argument("--contestants", type=_names, default="ours,bare,hf", help=CONTESTANTS)
    mode.add_argument("--reference", help="the contestant to compare with (default: the last one)")
    _add_effort(mode, rounds=3)

    mode = _add(modes, "growth", run_growth, "vary one size of a shape at a time, with memory off and ckpt")
    mode.add_argument("axes", nargs="*", default=list(AXES), help="T, B, L, V (default: all four)")
    mode.add_argument("--shape", default="middle", help="the shape to vary (default: %(default)s)")
    mode.add_argument("--factors", type=_factors, default="0.25,0.5,1,2,4", help="(default: %(default)s)")
    mode.add_argument("--figure", type=_figure, metavar="FILE", help="an .svg or .png to write or replace")
    _add_effort(mode, rounds=1)

    mode = _add(modes, "steady", run_steady, "check that memory does not grow over many steps")
    _add_shapes(mode)
    mode.add_argument("--contestants", type=_names, default="ours,ours-ckpt", help=CONTESTANTS)
    mode.add_argument("--steps", type=_at_least(10), default=500, help="(default: %(default)s)")

    mode = _add(modes, "overhead", run_overhead, "measure the checks of a step, and saving 25 million parameters")
    _add_shapes(mode)
    _add_effort(mode, rounds=3)
    return parser.parse_args()


def _add(modes: Any, name: str, run: Callable[..., Any], what: str) -> argparse.ArgumentParser:
    mode: argparse.ArgumentParser = modes.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    mode.set_defaults(run=run)
    mode.add_argument("--threads", type=_at_least(1), default=os.cpu_count(), help="threads (default: all cores)")
    mode.add_argument("--json", type=Path, metavar="FILE", help="a new file for all results")
    return mode


def _add_shapes(mode: argparse.ArgumentParser) -> None:
    mode.add_argument("shapes", nargs="*", default=["small"], help="small, base, middle (default: small)")


def _add_effort(mode: argparse.ArgumentParser, rounds: int) -> None:
    mode.add_argument("--rounds", type=_at_least(1), default=rounds, help="turns each (default: %(default)s)")
    mode.add_argument("--steps", type=_at_least(1), default=10, help="timed steps a turn (default: %(default)s)")
    mode.add_argument("--warmup", type=_at_least(1), default=2, help="warm-up steps (default: %(default)s)")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return number


def _names(text: str) -> list[str]:
    return text.split(",")


def _factors(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _figure(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".svg", ".png") or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be an .svg or .png in a folder that exists, got {text}")
    return path


def run_race(options: argparse.Namespace) -> dict[str, Any]:
    """Race the contestants at each shape."""
    from train.bench import race

    reference = options.reference or options.contestants[-1]
    require_known("contestant", [reference], options.contestants)
    results = []
    for shape in options.shapes:
        found = race.race(shape, options.contestants, _effort(options), print)
        print(race.race_table(found, reference))
        results.append(race.race_to_json(found, reference))
    return {"races": results}


def run_growth(options: argparse.Namespace) -> dict[str, Any]:
    """Vary the sizes of a shape, print the results and draw them if asked."""
    from train.bench import growth as grow
    from train.bench.shapes import SHAPES

    require_known("axis", options.axes, AXES)
    found = grow.measure_growth(SHAPES[options.shape], options.axes, options.factors, _effort(options), print)
    print(grow.growth_table(found))
    if options.figure:
        grow.draw_growth(found, options.figure)
        print(f"drew {options.figure}")
    return {"growth": grow.growth_to_json(found)}


def run_steady(options: argparse.Namespace) -> dict[str, Any]:
    """Take many steps at each shape and compare the memory held early and late."""
    from train.bench.overhead import memory_table, watch_memory
    from train.bench.shapes import SHAPES

    results = {}
    for shape in options.shapes:
        found = [watch_memory(name, SHAPES[shape], options.steps, options.threads) for name in options.contestants]
        print(memory_table(found))
        results[shape] = [asdict(one) | {"grew": one.grew} for one in found]
    return {"steady": results}


def run_overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the overhead of a run, using temporary files in the working folder."""
    from train.bench.overhead import measure_run

    return measure_run(options.shapes, _effort(options), print)


def _effort(options: argparse.Namespace) -> "TimingOptions":
    from train.bench.race import TimingOptions

    return TimingOptions(options.rounds, options.steps, options.warmup, options.threads)


def main() -> None:
    """Check the arguments, run the benchmark, and write its report."""
    options = parse_arguments()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.contestants import CONTESTANTS as KNOWN
        from train.bench.shapes import SHAPES
        from train.cli.output import require_new_file, write_report
    require_known("contestant", getattr(options, "contestants", ()), KNOWN, ONE_PROGRAM)
    require_known("shape", [options.shape] if "shape" in options else options.shapes, SHAPES)
    path = require_new_file(options.json) if options.json else None
    report = options.run(options)
    if path:
        write_report(path, report)
        print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
