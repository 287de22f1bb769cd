"""F1 to F3, F15: killed at any time or point: nothing torn is visible, and a run ends as one undisturbed."""

import random
import time
from pathlib import Path

import pytest
from conftest import Plan
from support.processes import KILLED, start_run

from faults.folders import (
    TINY,
    good_checkpoints,
    hashes,
    leftovers,
    require_equal,
    require_whole,
    require_whole_cache,
)
from faults.scale import scaled
from faults.tripwire import Tripwire
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.paths import parse_step, step_files
from train.config.schema import RunCfg

pytestmark = pytest.mark.slow
SAVES = (*TINY, "train.total_steps=4", "train.ckpt_every=1", "train.eval_every=2", "train.keep_last=1")
BUILDS = (*TINY, "model.V=300", "data.tokenizer=bpe", "train.total_steps=1")
EVERY = 3  # steps between checkpoints
LONG = (
    *(*TINY, f"train.ckpt_every={EVERY}", "train.eval_every=40", "train.log_every=1", "model.dropout=0.1"),
    f"train.total_steps={scaled(200, 600)}",
)
KILLS = scaled(4, 10)


@pytest.mark.parametrize("seed", range(scaled(1, 20)))
def test_a_chain_of_kills_at_random_times_changes_nothing(plan: Plan, seed: int) -> None:
    start_run(plan(*TINY, "train.total_steps=1", name="first")).end()  # the first child is slow
    straight, began = plan(*LONG, f"train.seed={seed}", name="straight"), time.monotonic()
    assert start_run(straight).end().returncode == 0
    longest = (time.monotonic() - began) / 4
    draw, kills, chains = random.Random(seed), 0, 0
    while kills < KILLS:  # a second chain only where the first came to its end too soon
        loaded = plan(*LONG, f"train.seed={seed}", name=f"chain{chains}")
        run, phase = Path(loaded[0].dir), loaded[0].out
        chains += 1
        while kills < KILLS:
            child = start_run(loaded)
            child.process.join(draw.uniform(0, longest))
            child.process.kill()
            if child.end().returncode != KILLED:
                break
            kills += 1
            require_whole(run)
            taken = max((event["step"] for event in read_metrics(phase / METRICS)), default=0)
            saved = max((parse_step(path) or 0 for path in step_files(phase)), default=0)
            assert taken - saved <= EVERY and (not saved or good_checkpoints(phase))
        assert start_run(loaded).end().returncode == 0
        require_equal(run, Path(straight[0].dir))


def traced(plan: list[RunCfg], folder: Path, tmp_path: Path) -> list[str]:
    """Carry out a plan undisturbed and return what was done to the files of a folder."""
    assert start_run(plan, Tripwire(folder, trace=tmp_path / "trace")).end().returncode == 0
    return (tmp_path / "trace").read_text().splitlines()


def chosen(points: list[str], part: int) -> list[int]:
    """Return all points to be killed at, 6 of the many writes to a file among them; or `part` that lie apart."""
    writes: dict[str, list[int]] = {}
    for number, point in enumerate(points):
        writes.setdefault(point if point.startswith("write ") else f"{number}", []).append(number)
    numbers = sorted({n[k * (len(n) - 1) // 5] for n in writes.values() for k in range(6)})
    count = scaled(part, len(numbers))
    return sorted({numbers[n * (len(numbers) - 1) // max(1, count - 1)] for n in range(count)})


def test_killed_at_any_point_of_a_save_or_a_prune_a_run_ends_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path
) -> None:
    straight = plan(*SAVES, name="straight")
    points = traced(straight, Path(straight[0].dir), tmp_path)
    first_good = next(n for n, point in enumerate(points) if point.endswith(".pt.part") and "replace" in point) + 1
    for at in chosen(points, part=6):
        loaded = plan(*SAVES, name=f"at{at}")
        run = Path(loaded[0].dir)
        assert start_run(loaded, Tripwire(run, at)).end().returncode == KILLED, points[at]
        require_whole(run)
        assert good_checkpoints(run / "pretrain") or at < first_good, points[at]
        left = leftovers(run)
        done = start_run(loaded).end()
        assert done.returncode == 0, points[at]
        assert ("left half written by" in done.stderr) == bool(left), points[at]
        require_equal(run, Path(straight[0].dir))


def test_what_was_told_and_what_is_in_a_small_file_is_on_the_disk_before_the_name_that_follows_from_it(
    plan: Plan, tmp_path: Path
) -> None:
    """Or a power cut could leave a checkpoint without its metrics, or a name with nothing in it."""
    loaded = plan(*SAVES, "train.log_every=1")
    told, after, named = "none yet", list[str](), set[str]()
    before = ""
    for point in traced(loaded, Path(loaded[0].dir), tmp_path):
        what, _, path = point.partition(" ")
        if path.endswith(METRICS):
            told = what
        elif what == "create" and path.endswith(".pt.part"):
            after.append(told)
        elif what == "replace" and path.endswith(".json.part"):
            assert before == f"fsync {path}"
            named.add(Path(path).name)
        before = point
    assert after == ["fsync"] * 4 and named >= {".result.json.part", ".tokenizer.json.part"}


def test_killed_at_any_point_of_a_build_a_token_cache_ends_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path
) -> None:
    straight = plan(*BUILDS, f"data.cache_dir={tmp_path / 'whole'}", name="straight")
    points = traced(straight, tmp_path / "whole", tmp_path)
    for at in chosen(points, part=4):
        cache = tmp_path / f"cache{at}"
        loaded = plan(*BUILDS, f"data.cache_dir={cache}", name=f"at{at}")
        assert start_run(loaded, Tripwire(cache, at)).end().returncode == KILLED, points[at]
        require_whole_cache(cache)
        assert start_run(loaded).end().returncode == 0, points[at]
        assert not leftovers(cache), points[at]
        assert hashes(cache) == hashes(tmp_path / "whole"), points[at]


def test_when_one_of_two_builders_is_killed_the_other_builds_the_same(plan: Plan, tmp_path: Path) -> None:
    whole = plan(*BUILDS, f"data.cache_dir={tmp_path / 'whole'}", name="straight")
    points = traced(whole, tmp_path / "whole", tmp_path)
    for n in range(1, 1 + (count := scaled(1, 9))):
        cache = tmp_path / f"cache{n}"
        first, second = (
            plan(*BUILDS, f"data.cache_dir={cache}", name=f"{name}{n}") for name in ("first", "second")
        )
        at = n * len(points) // (count + 1)
        both = start_run(first, Tripwire(cache, at)), start_run(second)
        assert both[0].end().returncode in (0, KILLED)  # 0: the other has built what it would have died at
        assert both[1].end().returncode == 0
        assert hashes(cache) == hashes(tmp_path / "whole")
