"""Stopped anywhere and gone on with, a run of any kind ends with the bits of one that was never stopped."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, stopped_after

from faults.folders import TINY, require_equal
from faults.scale import WHOLE
from niels_gpt.errors import Interrupted

STEPS = 5  # of a phase
CUTS = {"first": 1, "between": 2, "late": 4}  # of a phase; in a pipeline the later two are in its second phase
PHASES = ("pretrain", "sft", "pipeline")
ALL = list(itertools.product(PHASES, ("off", "ckpt"), (1, 3), (0.0, 0.1)))
SLICE = [  # each value of each setting at least once
    ("pretrain", "off", 3, 0.1, "between"),
    ("sft", "ckpt", 1, 0.0, "first"),
    ("pipeline", "ckpt", 3, 0.1, "late"),
]


def cases() -> list[tuple[tuple[Any, ...], list[str]]]:
    """Return the settings to try, each with its cuts."""
    if WHOLE:
        return [(settings, list(CUTS)) for settings in ALL]
    return [(case[:-1], [case[-1]]) for case in SLICE]


@pytest.mark.parametrize(("settings", "cuts"), cases(), ids=str)
def test_resume_is_exact_whatever_the_settings(
    run_folder: Run, settings: tuple[Any, ...], cuts: list[str]
) -> None:
    phase, memory, accum_steps, dropout = settings
    overrides = (
        *(*TINY, f"memory={memory}", f"train.accum_steps={accum_steps}", f"model.dropout={dropout}"),
        *(f"train.total_steps={STEPS}", "train.eval_every=2", "train.ckpt_every=3", "model.T=64"),
        *([f"sft.train.total_steps={STEPS}"] if phase == "pipeline" else []),
    )
    experiment = f"smoke_{phase}"
    straight = run_folder(*overrides, experiment=experiment, name="straight")
    for cut in cuts:
        before = CUTS[cut] + (STEPS if phase == "pipeline" and cut != "first" else 0)
        with stopped_after(before), pytest.raises(Interrupted):
            run_folder(*overrides, experiment=experiment, name=cut)
        require_equal(Path(run_folder(*overrides, experiment=experiment, name=cut)), straight)
