"""Killed again and again at any time while it trains, a run ends as one that nobody has disturbed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Plan, cli

from faults.children import KILLED, carried_out, exit_of, start
from faults.folders import TINY, good_checkpoints, require_equal, require_whole
from faults.scale import WHOLE, note, scaled
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.paths import parse_step, step_files
from train.config.schema import RunCfg

EVERY = 3  # steps between checkpoints
OFTEN = (f"train.ckpt_every={EVERY}", "train.eval_every=40", "train.log_every=1", "model.dropout=0.1")
LONG = (*TINY, *OFTEN, f"train.total_steps={scaled(200, 600)}")
SHARE = 0.25  # of the time of a whole run: a kill comes within that, which is about thrice what a start takes


def require_little_lost(phase: Path) -> None:
    """At most the steps since the last checkpoint have to be taken again."""
    taken = max((event["step"] for event in read_metrics(phase / METRICS)), default=0)
    saved = max((parse_step(path) or 0 for path in step_files(phase)), default=0)
    assert taken - saved <= EVERY
    assert not saved or good_checkpoints(phase)


def killed_chain(loaded: list[RunCfg], draw: random.Random, most: int, longest: float, said: Path) -> int:
    """Kill a run at random times, `most` times at most, then let it end; return how often it was killed."""
    run = Path(loaded[0].dir)
    for kills in range(most):
        child = start(loaded, said)
        child.join(draw.uniform(0, longest))
        child.kill()
        if exit_of(child) != KILLED:
            return kills
        require_whole(run)
        require_little_lost(run / "pretrain")
    assert carried_out(loaded, said) == 0
    return most


@pytest.mark.parametrize("seed", range(scaled(1, 20)))
def test_a_chain_of_kills_at_random_times_changes_nothing(plan: Plan, tmp_path: Path, seed: int) -> None:
    asked = scaled(4, 10)
    straight = plan(*LONG, f"train.seed={seed}", name="straight")
    carried_out(plan(*TINY, "train.total_steps=1", name="warm"), tmp_path / "said")  # the first child is slow
    began = time.monotonic()
    assert carried_out(straight, tmp_path / "said") == 0
    longest, draw, kills, chains = SHARE * (time.monotonic() - began), random.Random(seed), 0, 0
    while kills < asked:  # a second chain only where the first came to its end too soon
        chain = plan(*LONG, f"train.seed={seed}", name=f"chain{chains}")
        kills += killed_chain(chain, draw, asked - kills, longest, tmp_path / "said")
        chains += 1
        require_equal(Path(chain[0].dir), Path(straight[0].dir))
    note(
        "kill -9 at random times in training",
        "20 chains of 10 kills: 0 lost, ends equal to the bit, each step once in metrics.jsonl",
        f"{scaled(1, 20)} chains of {kills} kills: 0 lost, all ends equal, at most {EVERY} steps redone",
    )


@pytest.mark.skipif(not WHOLE, reason="real starts take seconds each: make faults")
def test_the_real_command_killed_at_random_times_ends_as_if_it_had_not_been(plan: Plan, tmp_path: Path) -> None:
    straight = plan(*LONG, "train.total_steps=1500", name="straight")
    assert carried_out(straight, tmp_path / "said") == 0
    own = [f"dir={tmp_path / 'real'}", "name=straight", f"data.cache_dir={straight[0].data.cache_dir}"]
    arguments = ["experiment=smoke_pretrain", *LONG, *own, "train.total_steps=1500"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    draw, kills = random.Random(0), 0
    for _ in range(8):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=dict(os.environ)) as process:
            while not (tmp_path / "real" / "pretrain" / METRICS).exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 4.0))
            process.kill()
        kills += process.returncode == KILLED
        require_whole(tmp_path / "real")
        require_little_lost(tmp_path / "real" / "pretrain")
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    require_equal(tmp_path / "real", Path(straight[0].dir))
    note("kill -9 of the real command", "ends equal to the bit", f"{kills} kills: 0 lost, the end is equal")
