"""F2, F3, F15: killed at any point of a write or prune: nothing torn is visible, and nothing is lost."""

import re
from functools import partial
from pathlib import Path

import pytest
from conftest import Plan, same, stopped_at
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
from faults.tripwire import Tripwire, spread
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.metrics import METRICS
from train.artifacts.paths import BEST, LATEST
from train.artifacts.results import read_results
from train.config.schema import RunCfg
from train.loop.evaluate import evaluate

pytestmark = pytest.mark.slow
SAVES = (*TINY, "train.total_steps=4", "train.ckpt_every=1", "train.eval_every=2", "train.keep_last=1")
BUILDS = (*TINY, "model.V=300", "data.tokenizer=bpe", "train.total_steps=1")


def traced(plan: list[RunCfg], folder: Path, tmp_path: Path) -> list[str]:
    """Carry out a plan undisturbed and return what was done to the files of a folder."""
    assert start_run(plan, Tripwire(folder, trace=tmp_path / "trace")).end().returncode == 0
    return (tmp_path / "trace").read_text().splitlines()


def chosen(points: list[str], part: int) -> list[int]:
    """Return the points to be killed at: all of them, or `part` of them that lie apart."""
    numbers = spread(points, most=6)
    count = scaled(part, len(numbers))
    return sorted({numbers[n * (len(numbers) - 1) // max(1, count - 1)] for n in range(count)})


def test_killed_at_any_point_of_a_save_or_a_prune_a_run_ends_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path
) -> None:
    straight = plan(*SAVES, name="straight")
    points = traced(straight, Path(straight[0].dir), tmp_path)
    first_good = next(n for n, point in enumerate(points) if point.endswith(".pt.part") and "replace" in point) + 1
    numbers = chosen(points, part=6)
    for at in numbers:
        loaded = plan(*SAVES, name=f"at{at}")
        run = Path(loaded[0].dir)
        assert start_run(loaded, Tripwire(run, at)).end().returncode == KILLED, points[at]
        require_whole(run)
        assert good_checkpoints(run / "pretrain") or at < first_good, points[at]
        left = leftovers(run)
        done = start_run(loaded).end()
        assert done.returncode == 0, points[at]
        assert ("removed partial files" in done.stderr) == bool(left), points[at]
        require_equal(run, Path(straight[0].dir))


def stop_in_evaluation(number: int) -> None:
    stopped_at(evaluate, number).start()


@pytest.mark.parametrize("number", [1, 2][: scaled(1, 2)])
def test_killed_at_any_point_of_an_evaluation_that_is_repeated_a_run_ends_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path, number: int
) -> None:
    """A stop cut the evaluation off; the next process is killed before or after each write that follows it."""
    straight = plan(*SAVES, name="straight")
    assert start_run(straight).end().returncode == 0

    def cut_off(name: str) -> list[RunCfg]:
        loaded = plan(*SAVES, name=name)
        assert start_run(loaded, partial(stop_in_evaluation, number)).end().returncode == 1
        assert read_checkpoint(loaded[0].out / LATEST)["step"] == 2 * number
        return loaded

    points = traced(loaded := cut_off("first"), Path(loaded[0].dir), tmp_path)
    saved = next(n for n, point in enumerate(points) if point.endswith(f".{LATEST}.part") and "replace" in point)
    numbers = chosen(points[: saved + 1], part=6)
    for at in numbers:
        loaded = cut_off(f"at{at}")
        assert start_run(loaded, Tripwire(Path(loaded[0].dir), at)).end().returncode == KILLED, points[at]
        assert start_run(loaded).end().returncode == 0, points[at]
        require_equal(Path(loaded[0].dir), Path(straight[0].dir))
        best, expected = (read_checkpoint(cfg.out / BEST) for cfg in (loaded[0], straight[0]))
        assert same(best["model_state"], expected["model_state"]), points[at]
        reached, asked = (read_results(Path(cfg.dir))["pretrain"] for cfg in (loaded[0], straight[0]))
        assert reached.best_val_loss == asked.best_val_loss is not None, points[at]


def test_what_was_told_is_on_the_disk_before_the_checkpoint_it_led_to(plan: Plan, tmp_path: Path) -> None:
    loaded = plan(*SAVES, "train.log_every=1")
    told, settled = "none yet", 0
    for point in traced(loaded, Path(loaded[0].dir), tmp_path):
        what, _, path = point.partition(" ")
        if path.endswith(METRICS):
            told = what
        elif what == "create" and path.endswith(".pt.part"):
            assert told == "fsync", point
            settled += 1
    assert settled == 4


def test_a_small_file_is_on_the_disk_before_it_has_its_name(plan: Plan, tmp_path: Path) -> None:
    """Or a power cut could leave the name with nothing in it."""
    loaded = plan(*BUILDS)
    points = traced(loaded, Path(loaded[0].dir), tmp_path)
    replaced = [at for at, point in enumerate(points) if re.fullmatch(r"replace .*\.json\.part", point)]
    assert {Path(points[at]).name for at in replaced} >= {".result.json.part", ".tokenizer.json.part"}
    for at in replaced:
        assert points[at - 1] == points[at].replace("replace", "fsync", 1)


def test_killed_at_any_point_of_a_build_a_token_cache_ends_as_if_it_had_not_been(
    plan: Plan, tmp_path: Path
) -> None:
    straight = plan(*BUILDS, f"data.cache_dir={tmp_path / 'whole'}", name="straight")
    points = traced(straight, tmp_path / "whole", tmp_path)
    numbers = chosen(points, part=4)
    for at in numbers:
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
