"""F1 to F3, F15: killed or stopped anywhere: nothing torn is visible, and a run ends as one undisturbed."""

import io
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Plan, Run, stopped_after
from support.processes import KILLED, start_run

from faults.folders import TINY, hashes, leftovers, require_equal, require_whole
from faults.scale import WHOLE, scaled
from niels_gpt.errors import Interrupted
from niels_gpt.weights.paths import list_checkpoints, parse_step, step_files
from train.artifacts.metrics import METRICS, read_metrics
from train.config.schema import RunCfg

SAVES = (*TINY, "train.total_steps=4", "train.ckpt_every=1", "train.eval_every=2", "train.keep_last=1")
BUILDS = (*TINY, "model.V=300", "data.tokenizer=bpe", "train.total_steps=1")
EVERY = 3  # steps between checkpoints
LONG = (
    *(*TINY, f"train.ckpt_every={EVERY}", "train.eval_every=40", "train.log_every=1", "model.dropout=0.1"),
    f"train.total_steps={scaled(200, 600)}",
)
KILLS = scaled(4, 10)
CALLS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "open", "fsync")  # of the module os
STEPS = 5  # of a phase
CUTS = {"first": 1, "between": 2, "late": 4}  # of a phase; in a pipeline the later two are in its second phase
ALL = itertools.product(("pretrain", "sft", "pipeline"), ("off", "ckpt"), (1, 3), (0.0, 0.1))
SLICE = [  # each value of each setting at least once
    (("pretrain", "off", 3, 0.1), ["between"]),
    (("sft", "ckpt", 1, 0.0), ["first"]),
    (("pipeline", "ckpt", 3, 0.1), ["late"]),
]
CASES = [(settings, list(CUTS)) for settings in ALL] if WHOLE else SLICE


class Tripwire:
    """Called in a process, it kills that at the n-th thing that is done to the files of a folder.

    It wraps functions of the standard library; the program knows nothing of it. Without `at`, it only notes them.
    """

    def __init__(self, folder: Path, at: int | None = None, trace: Path | None = None) -> None:
        self.folder, self.at, self.trace = str(folder), at, trace
        self.count = 0

    def __call__(self) -> None:
        """Lay the wire around everything that changes files."""
        if self.trace:
            self.file = os.open(self.trace, os.O_WRONLY | os.O_CREAT)
        for name in CALLS:
            setattr(os, name, self._wired(name, getattr(os, name)))
        self._open: Callable[..., Any] = io.open
        vars(io)["open"] = self._opened

    def passed(self, what: str, path: Any) -> None:
        """Count a thing that is about to be done; die if it is the one."""
        path = str(path)
        if not path.startswith(self.folder) or path.endswith(".lock"):
            return
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.trace:
            os.write(self.file, f"{what} {path.removeprefix(self.folder)}\n".encode())

    def _wired(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wired(path: Any, *rest: Any, **named: Any) -> Any:
            self.passed(name, os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
            return real(path, *rest, **named)

        return wired

    def _opened(self, path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode[0] == "r":
            return self._open(path, mode, *rest, **named)
        self.passed("create", path)
        return _Slow(self._open(path, mode, *rest, **named), lambda: self.passed("write", path))


class _Slow:
    """A file that writes everything in two halves, which are on the disk before `between` is called."""

    def __init__(self, file: Any, between: Callable[[], None]) -> None:
        self.file, self.between = file, between

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.between()
        self.file.write(content[half:])
        return len(content)

    def __enter__(self) -> "_Slow":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.slow
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
            assert taken - saved <= EVERY
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


@pytest.mark.slow
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
        assert list_checkpoints(run / "pretrain") or at < first_good, points[at]
        left, done = leftovers(run), start_run(loaded).end()
        assert done.returncode == 0, points[at]
        assert ("removed partial files" in done.stderr) == bool(left), points[at]
        require_equal(run, Path(straight[0].dir))


@pytest.mark.slow
def test_what_was_told_and_what_is_in_a_small_file_is_on_the_disk_before_the_name_that_follows_from_it(
    plan: Plan, tmp_path: Path
) -> None:
    """Or a power cut could leave a checkpoint without its metrics, or a name with nothing in it."""
    loaded = plan(*SAVES, "train.log_every=1")
    told, before, after, named = "", "", list[str](), set[str]()
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


@pytest.mark.slow
def test_killed_at_any_point_of_a_build_a_token_cache_is_built_as_if_it_had_not_been_by_two_at_once(
    plan: Plan, tmp_path: Path
) -> None:
    straight = plan(*BUILDS, f"data.cache_dir={tmp_path / 'whole'}", name="straight")
    points = traced(straight, tmp_path / "whole", tmp_path)
    for at in chosen(points, part=4):
        cache = tmp_path / f"cache{at}"
        both = [plan(*BUILDS, f"data.cache_dir={cache}", name=f"{name}{at}") for name in ("first", "second")]
        assert start_run(both[0], Tripwire(cache, at)).end().returncode == KILLED, points[at]
        assert hashes(cache).items() <= hashes(tmp_path / "whole").items(), points[at]
        assert [run.end().returncode for run in [start_run(loaded) for loaded in both]] == [0, 0], points[at]
        assert not leftovers(cache), points[at]
        assert hashes(cache) == hashes(tmp_path / "whole"), points[at]


@pytest.mark.parametrize(("settings", "cuts"), CASES, ids=str)
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
        require_equal(run_folder(*overrides, experiment=experiment, name=cut), straight)
