"""Time to a given loss: what it takes a recipe to train a model to so many bits per byte on the embedded data."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from niels_gpt.errors import NielsError
from train.ask import ROOT
from train.result import PhaseResult, read_results
from train.text_table import table

TARGETS = {"tiny": 1.9, "small": 2.33}  # bits per byte of the validation text


class SpeedrunFailed(NielsError):
    """A run of the speedrun did not finish."""


@dataclass(frozen=True)
class Recipe:
    """Settings for each model, and the steps in which they take it to its target."""

    name: str
    settings: dict[str, tuple[str, ...]]
    steps: dict[str, int]


PLAIN = ("optim=adamw", "model.tie_embeddings=true")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "baseline",
            {"tiny": (*PLAIN, "train.base_lr=0.004"), "small": (*PLAIN, "train.base_lr=0.001")},
            {"tiny": 600, "small": 100},
        ),
        Recipe("default", {"tiny": (), "small": ()}, {"tiny": 220, "small": 32}),
    )
}


@dataclass(frozen=True)
class Attempt:
    """One run of a recipe, and what it reached."""

    model: str
    recipe: str
    seed: int
    result: PhaseResult

    @property
    def reached(self) -> bool:
        """Whether it came to the target."""
        bits = self.result.bits_per_byte
        return bits is not None and bits <= TARGETS[self.model]

    def says(self) -> str:
        """Tell of it in a line."""
        result = self.result
        verdict = "reached" if self.reached else "MISSED"
        return (
            f"{result.step} steps, {result.tokens:,} tokens, {result.cpu_seconds} CPU seconds, "
            f"{result.bits_per_byte:.4f} bits per byte, target {TARGETS[self.model]} {verdict}"
        )


def attempt(model: str, recipe: Recipe, seed: int, folder: Path) -> Attempt:
    """Train in a fresh process, as a user does; a run that is complete in `folder` is not made again.

    Raises:
        SpeedrunFailed: it did not finish; the message has its last words.
    """
    run, steps = folder / f"{model}-{recipe.name}-{seed}", recipe.steps[model]
    at_the_end = [f"train.{what}_every={steps}" for what in ("eval", "ckpt")]
    settings = [
        f"model={model}",
        *recipe.settings[model],
        f"train.seed={seed}",
        f"train.total_steps={steps}",
        *at_the_end,
    ]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "phase=pretrain", f"dir={run}", *settings]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SpeedrunFailed(
            f"{run}: exit code {done.returncode}: {done.stderr.strip()}", "mend it and start again"
        )
    return Attempt(model, recipe.name, seed, read_results(run)["pretrain"])


def as_table(attempts: Sequence[Attempt]) -> str:
    """Return a line for each model and recipe: means over the seeds, and CPU seconds as a share of the first's."""
    head = ("model, recipe", "steps", "tokens", "bits per byte", "target", "reached", "CPU seconds", "share")
    return table([head, *_rows(attempts)], right=range(1, len(head)), markdown=True)


def _rows(attempts: Sequence[Attempt]) -> Iterator[tuple[str, ...]]:
    for model in dict.fromkeys(one.model for one in attempts):
        first = 0.0
        for recipe in dict.fromkeys(one.recipe for one in attempts):
            ours = [one for one in attempts if (one.model, one.recipe) == (model, recipe)]
            seconds = mean(one.result.cpu_seconds or 0.0 for one in ours)
            first = first or seconds
            yield (
                f"{model}, {recipe}",
                f"{ours[0].result.step}",
                f"{ours[0].result.tokens:,}",
                f"{mean(one.result.bits_per_byte or 0.0 for one in ours):.4f}",
                f"{TARGETS[model]}",
                f"{sum(one.reached for one in ours)} of {len(ours)}",
                f"{seconds:.0f}",
                f"{seconds / first:.2f}" if first else "",
            )
