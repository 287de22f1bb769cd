"""Measure this machine, its precisions, steps, texts and answers: niels_gpt doctor, numerics and bench."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from operator import methodcaller
from pathlib import Path
from typing import Any

from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_report_flags, report, require_new_file
from train.config import compose_plan
from train.config.suggest import require_known

EXAMPLE = "example: niels_gpt doctor model=base model.T=512 train.B=8 train.accum_steps=1 --steps 5"
CONTESTANTS = """comma-separated: ours, bare or hf; each also with -compile, -ckpt or
-ckpt-compile, and ours and bare with -muon (default: %(default)s)"""
AXES = "TBLV"
FACTORS = [0.25, 0.5, 1.0, 2.0, 4.0]


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
    report(options.json, lambda: examine_machine(cfg, options.steps), options.out)


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


def run_bench() -> None:
    """Benchmark optimizer steps, tokenization and generation on this machine, with OMP_NUM_THREADS threads."""
    parser = Parser(description=run_bench.__doc__)
    add_modes(parser)
    options = parser.parse_args()
    with defer_signals():  # imports torch, which takes seconds
        from train.bench.contestants import CONTESTANTS as KNOWN
        from train.bench.shapes import SHAPES
    require_known("contestant", options.contestants, KNOWN)
    require_known("shape", options.shapes, SHAPES)
    report(options.json, lambda: options.run(options), options.out)


def add_modes(parser: ArgumentParser) -> None:
    """Add the benchmarks, each with its flags."""
    modes = parser.add_subparsers(metavar="race|growth|steady|overhead|spinning|tokenize|generate", required=True)

    def add_mode(name: str, run: Callable[..., Any], *, steps: int = 10, least: int = 1) -> Callable[..., Any]:
        mode = modes.add_parser(name, help=run.__doc__, description=run.__doc__)
        mode.set_defaults(run=run, contestants=[], shapes=[])
        add_report_flags(mode)
        if run not in (run_tokenize, run_generate):
            mode.add_argument("--steps", type=at_least(least), default=steps, help="steps (default: %(default)s)")
        if run not in (run_growth, run_tokenize, run_generate):
            mode.add_argument(
                "shapes", nargs="*", default=["small"], help="tiny, small, base, middle (default: small)"
            )
        return mode.add_argument

    names: dict[str, Any] = {"metavar": "NAMES", "type": methodcaller("split", ","), "help": CONTESTANTS}
    rounds: dict[str, Any] = {"type": at_least(1), "help": "turns of each (default: %(default)s)"}
    add = add_mode("race", run_race)
    add("--contestants", default="ours,bare,hf", **names)
    add("--rounds", default=3, **rounds)
    add = add_mode("growth", run_growth)
    add("axes", nargs="*", default=list(AXES), help="T, B, L, V (default: all four)")
    add("--shape", dest="shapes", nargs=1, default=["middle"], help="the shape to vary (default: middle)")
    add("--factors", type=float, nargs="+", default=FACTORS, help="factors of each size (default: %(default)s)")
    add("--figure", type=require_new_file, metavar="FILE.svg", help="a new file for the figure")
    add_mode("steady", run_steady, steps=500, least=10)("--contestants", default="ours,ours-ckpt", **names)
    add_mode("overhead", run_overhead)
    add_mode("spinning", run_spinning)("--rounds", default=3, **rounds)
    add = add_mode("tokenize", run_tokenize)
    add("sizes", nargs="*", type=at_least(1), default=[300], help="MB of text (default: 300)")
    form = "text with marks between documents, rows of JSON, or one long text (default: %(default)s)"
    add("--form", choices=("text", "jsonl", "whole"), default="text", help=form)
    add("--rounds", default=2, **rounds)
    add = add_mode("generate", run_generate)
    add("runs", nargs="+", type=Path, help="trained runs, such as runs/default")
    add("--tokens", type=at_least(2), default=64, help="tokens of a turn (default: %(default)s)")
    add("--rounds", default=5, **rounds)


def run_race(options: Namespace) -> dict[str, Any]:
    """Race contestants in turns, each turn in a fresh process, and compare all with the last."""
    from train.bench.race import race

    return {"races": [race(s, options.contestants, options.rounds, options.steps) for s in options.shapes]}


def run_growth(options: Namespace) -> dict[str, Any]:
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


def run_steady(options: Namespace) -> dict[str, Any]:
    """Take many steps, and show the memory held after a tenth of them and at the end."""
    from train.bench.overhead import watch_memory

    return {"steady": {name: watch_memory(name, options.contestants, options.steps) for name in options.shapes}}


def run_overhead(options: Namespace) -> dict[str, Any]:
    """Time the checks of a step, and saving 25 million parameters to a temporary file in this folder."""
    from train.bench.overhead import measure_overhead, measure_saving

    overhead = {name: measure_overhead(name, options.steps) for name in options.shapes}
    return {"overhead": overhead, "saving": measure_saving(Path.cwd())}


def run_spinning(options: Namespace) -> dict[str, Any]:
    """Time steps with several OpenMP spin counts, alone and beside a busy process per core."""
    from train.bench.overhead import measure_spinning

    return {"spinning": [measure_spinning(name, options.rounds, options.steps) for name in options.shapes]}


def run_tokenize(options: Namespace) -> dict[str, Any]:
    """Tokenize generated text in a temporary folder in this one, in turns with the library's own call."""
    from train.bench.tokenizing import measure_tokenizing

    return {"tokenize": measure_tokenizing([int(size) for size in options.sizes], options.form, options.rounds)}


def run_generate(options: Namespace) -> dict[str, Any]:
    """Generate at full context, in turns with transformers and llama.cpp (xllamacpp) if they are installed."""
    from train.bench.generating import race_generation

    return {"generate": [race_generation(run, options.rounds, options.tokens) for run in options.runs]}
