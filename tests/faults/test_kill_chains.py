"""F1: killed again and again at any time while it trains, a run ends as one that nobody has disturbed."""

import random
import time
from pathlib import Path

import pytest
from conftest import Plan
from support.processes import KILLED, start_run

from faults.folders import TINY, good_checkpoints, require_equal, require_whole
from faults.scale import scaled
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.paths import parse_step, step_files

pytestmark = pytest.mark.slow
EVERY = 3  # steps between checkpoints
LONG = (
    *(*TINY, f"train.ckpt_every={EVERY}", "train.eval_every=40", "train.log_every=1", "model.dropout=0.1"),
    f"train.total_steps={scaled(200, 600)}",
)
KILLS = scaled(4, 10)


def require_little_lost(phase: Path) -> None:
    """At most the steps since the last checkpoint have to be taken again."""
    taken = max((event["step"] for event in read_metrics(phase / METRICS)), default=0)
    saved = max((parse_step(path) or 0 for path in step_files(phase)), default=0)
    assert taken - saved <= EVERY
    assert not saved or good_checkpoints(phase)


@pytest.mark.parametrize("seed", range(scaled(1, 20)))
def test_a_chain_of_kills_at_random_times_changes_nothing(plan: Plan, seed: int) -> None:
    start_run(plan(*TINY, "train.total_steps=1", name="first")).end()  # the first child is slow
    straight, began = plan(*LONG, f"train.seed={seed}", name="straight"), time.monotonic()
    assert start_run(straight).end().returncode == 0
    longest = (time.monotonic() - began) / 4
    draw, kills, chains = random.Random(seed), 0, 0
    while kills < KILLS:  # a second chain only where the first came to its end too soon
        loaded = plan(*LONG, f"train.seed={seed}", name=f"chain{chains}")
        run = Path(loaded[0].dir)
        chains += 1
        while kills < KILLS:
            child = start_run(loaded)
            child.process.join(draw.uniform(0, longest))
            child.process.kill()
            if child.end().returncode != KILLED:
                break
            kills += 1
            require_whole(run)
            require_little_lost(run / "pretrain")
        assert start_run(loaded).end().returncode == 0
        require_equal(run, Path(straight[0].dir))
