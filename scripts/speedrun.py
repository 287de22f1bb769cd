"""Measures the CPU seconds that it takes to train a model to a fixed number of bits per byte, for each recipe."""

import _root  # noqa: F401  isort: skip
import argparse
from pathlib import Path

from train.cli import Parser, command
from train.known import require_known
from train.speedrun import RECIPES, TARGETS, as_table, attempt


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog="example: python scripts/speedrun.py tiny --seeds 1")
    parser.add_argument("models", nargs="*", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="separated by commas (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/speedrun"), help="where runs are kept (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds is at least 1")
    options.models = options.models or list(TARGETS)
    options.recipes = options.recipes.split(",")
    return options


def main() -> None:
    """Train, and print the table."""
    options = arguments()
    require_known("model", options.models, TARGETS)
    require_known("recipe", options.recipes, RECIPES)
    attempts = []
    for seed in range(1, options.seeds + 1):
        for model in options.models:
            for recipe in options.recipes:
                attempts.append(attempt(model, RECIPES[recipe], seed, options.dir))
                print(f"{model} {recipe} seed {seed}: {attempts[-1].says()}", flush=True)
    print(as_table(attempts))


if __name__ == "__main__":
    command(main)
