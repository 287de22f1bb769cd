"""Benchmark optimizer steps, with OMP_NUM_THREADS threads, tokenization and generation on this machine."""

import argparse
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_report_flags, report, require_new_file
from train.config.suggest import require_known

CONTESTANTS = """comma-separated: ours, bare or hf; each also with -compile, -ckpt or
-ckpt-compile, and ours and bare with -muon (default: %(default)s)"""
SPLIT = methodcaller("split", ",")
AXES = "TBLV"
FORMS = ("text", "jsonl", "whole")
FACTORS = [0.25, 0.5, 1.0, 2.0, 4.0]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    modes = parser.add_subparsers(metavar="race|growth|steady|overhead|spinning|tokenize|generate", required=True)

    def add_mode(name: str, run: Callable[..., Any], least: int, steps: int) -> argparse.ArgumentParser:
        mode: argparse.ArgumentParser = modes.add_parser(name, help=run.__doc__, description=run.__doc__)
        mode.set_defaults(run=run, contestants=[])
        mode.add_argument("--steps", type=at_least(least), default=steps, help="steps (default: %(default)s)")
        add_report_flags(mode)
        if run is not run_growth:
            mode.add_argument(
                "shapes", nargs="*", default=["small"], help="tiny, small, base, middle (default: small)"
            )
        return mode

    mode = add_mode("race", run_race, 1, 10)
    mode.add_argument("--contestants", metavar="NAMES", type=SPLIT, default="ours,bare,hf", help=CONTESTANTS)
    mode.add_argument("--rounds", type=at_least(1), default=3, help="turns per contestant (default: %(default)s)")
    mode = add_mode("growth", run_growth, 1, 10)
    mode.add_argument("axes", nargs="*", default=list(AXES), help="T, B, L, V (default: all four)")
    mode.add_argument(
        "--shape", dest="shapes", nargs=1, default=["middle"], help="the shape to vary (default: middle)"
    )
    mode.add_argument(
        "--factors", type=float, nargs="+", default=FACTORS, help="factors of each size (default: %(default)s)"
    )
    mode.add_argument("--figure", type=require_new_file, metavar="FILE.svg", help="a new file for the figure")
    mode = add_mode("steady", run_steady, 10, 500)
    mode.add_argument("--contestants", metavar="NAMES", type=SPLIT, default="ours,ours-ckpt", help=CONTESTANTS)
    add_mode("overhead", run_overhead, 1, 10)
    mode = add_mode("spinning", run_spinning, 1, 10)
    mode.add_argument("--rounds", type=at_least(1), default=3, help="turns per contestant (default: %(default)s)")
    mode = modes.add_parser("tokenize", help=run_tokenize.__doc__, description=run_tokenize.__doc__)
    mode.set_defaults(run=run_tokenize, contestants=[], shapes=[])
    mode.add_argument("sizes", nargs="*", type=at_least(1), default=[300], help="MB of text (default: 300)")
    mode.add_argument(
        "--form",
        choices=FORMS,
        default="text",
        help="text with marks between documents, rows of JSON, or one long text (default: %(default)s)",
    )
    mode.add_argument("--rounds", type=at_least(1), default=2, help="turns of each (default: %(default)s)")
    add_report_flags(mode)
    mode = modes.add_parser("generate", help=run_generate.__doc__, description=run_generate.__doc__)
    mode.set_defaults(run=run_generate, contestants=[], shapes=[])
    mode.add_argument("runs", nargs="+", type=Path, help="trained runs, such as runs/default")
    mode.add_argument("--rounds", type=at_least(1), default=5, help="turns of each (default: %(default)s)")
    mode.add_argument("--tokens", type=at_least(2), default=64, help="tokens of a turn (default: %(default)s)")
    add_report_flags(mode)
    return parser.parse_args()


def run_race(options: argparse.Namespace) -> dict[str, Any]:
    """Race contestants in turns, each turn in a fresh process, and compare all with the last."""
    from train.bench.race import race

    return {"races": [race(s, options.contestants, options.rounds, options.steps) for s in options.shapes]}


def run_growth(options: argparse.Namespace) -> dict[str, Any]:
    """Vary one size of a shape at a time, with memory off and ckpt."""
    from train.bench import growth
    from train.bench.shapes import SHAPES

    require_known("axis", options.axes, AXES)
    found = growth.measure_growth(SHAPES[options.shapes[0]], options.axes, options.factors, options.steps)
    print(growth.format_growth(found))
    if options.figure:
        growth.draw_growth(found, options.figure)
        print(f"drew {options.figure}")
    return {"growth": found}


def run_steady(options: argparse.Namespace) -> dict[str, Any]:
    """Take many steps, and show the memory held after a tenth of them and at the end."""
    from train.bench.overhead import watch_memory

    return {"steady": {name: watch_memory(name, options.contestants, options.steps) for name in options.shapes}}


def run_overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Time the checks of a step, and saving 25 million parameters to a temporary file in this folder."""
    from train.bench.overhead import measure_overhead, measure_saving

    overhead = {name: measure_overhead(name, options.steps) for name in options.shapes}
    return {"overhead": overhead, "saving": measure_saving(Path.cwd())}


def run_spinning(options: argparse.Namespace) -> dict[str, Any]:
    """Time steps with several OpenMP spin counts, alone and beside a busy process per core."""
    from train.bench.spinning import measure_spinning

    return {"spinning": [measure_spinning(name, options.rounds, options.steps) for name in options.shapes]}


def run_tokenize(options: argparse.Namespace) -> dict[str, Any]:
    """Tokenize generated text in a temporary folder in this one, in turns with the library's own call."""
    from train.bench.tokenizing import measure_tokenizing

    return {"tokenize": measure_tokenizing([int(size) for size in options.sizes], options.form, options.rounds)}


def run_generate(options: argparse.Namespace) -> dict[str, Any]:
    """Generate at full context, in turns with transformers and llama.cpp (xllamacpp) if they are installed."""
    from train.bench.generating import race_generation

    return {"generate": [race_generation(run, options.rounds, options.tokens) for run in options.runs]}


def main() -> None:
    """Check the names of contestants and shapes, run the benchmark, and write its report."""
    options = parse_arguments()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.contestants import CONTESTANTS as KNOWN
        from train.bench.shapes import SHAPES
    require_known("contestant", options.contestants, KNOWN)
    require_known("shape", options.shapes, SHAPES)
    report(options.json, lambda: options.run(options), options.out)
