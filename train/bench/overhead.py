"""Measure the overhead of a run: per-step checks, saving checkpoints, and memory growth over many steps."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import TrainState, save_step
from train.artifacts.paths import step_path
from train.bench.contestants import CPU, SEQUENCES, make_source, make_state, make_train_cfg
from train.bench.race import Say, TimingOptions, run_worker
from train.bench.shapes import SHAPES, Shape
from train.cli.output import format_mib, format_table
from train.hardware.step_cost import StepTime, time_steps
from train.loop.evaluate import UnigramBaseline
from train.loop.logger import RunLogger
from train.loop.steps import optimizer_step

SAVED = ModelCfg(V=16384, T=512, C=512, L=5, H=8, d_ff=1488, tie_embeddings=True)  # 25 million parameters
BATCHES, REPEATS = 7, 1000  # of a part; the median batch counts
NOISE = 0.02  # of the resident size: pages come and go with the allocator
Work = Callable[[], object]


@dataclass(frozen=True)
class Overhead:
    """CPU seconds of a step, and of each part of it that is not learning."""

    step: float
    parts: dict[str, float]

    def share(self, *names: str) -> float:
        """Return the share of a step that some parts take, by default all but the drawing."""
        asked = names or tuple(name for name in self.parts if name != "draw")
        return sum(self.parts[name] for name in asked) / self.step


@dataclass(frozen=True)
class SavingTimes:
    """Median seconds to save a checkpoint, to verify and load it, and to write as many bytes."""

    parameters: int
    size: int
    save: StepTime
    load: StepTime
    plain: StepTime


def measure_overhead(shape: Shape, steps: int, warmup: int) -> Overhead:
    """Measure the CPU time of steps of a shape, then of each part by itself."""
    cfg = make_train_cfg(shape, {}, steps)
    state, drawn = make_state(shape, cfg), make_source(shape)
    times = time_steps(lambda: optimizer_step(state, cfg, drawn, nullcontext, cfg.base_lr), warmup + steps, CPU)
    with tempfile.TemporaryDirectory() as folder:
        logger = RunLogger(Path(folder), cfg.total_steps, state, UnigramBaseline(1.0, 1.0))
        parts = list_parts(shape, drawn.draw(0, cfg.effective_batch), state, logger)
        seconds = {name: time_repeats(work) for name, work in parts.items()}
    seconds["metrics"] /= cfg.log_every  # a line is written only so often
    return Overhead(median(taken.cpu for taken in times[warmup:]), seconds)


def list_parts(shape: Shape, batch: Batch, state: TrainState, logger: RunLogger) -> dict[str, Work]:
    """Return the work of each step besides learning; `metrics` is one line of metrics.jsonl."""
    drawn, numbers, loss, norm = make_source(shape), count(), torch.tensor(2.5), torch.tensor(0.5)
    sequences = len(batch.x)
    return {
        "draw": lambda: drawn.draw(next(numbers) * sequences, sequences),
        "require_ids": lambda: require_ids(batch, shape.model.V),
        "finite": lambda: bool(torch.isfinite(loss + norm)),
        "metrics": lambda: logger.log_step(state, loss.item(), 1e-3, norm.item()),
    }


def time_repeats(work: Work) -> float:
    """Return the CPU seconds of some short work, the median over batches of repeats."""

    def repeat() -> None:
        for _ in range(REPEATS):
            work()

    return median(taken.cpu for taken in time_steps(repeat, BATCHES, CPU)) / REPEATS


def measure_saving(folder: Path, tries: int) -> SavingTimes:
    """Save, verify and load a checkpoint with AdamW's state, as a run does, on the disk of `folder`."""
    shape = Shape(model=SAVED, B=1, accum_steps=1)
    cfg = make_train_cfg(shape, {}, 1)
    state = make_state(shape, cfg)
    optimizer_step(state, cfg, make_source(shape), nullcontext, cfg.base_lr)  # makes AdamW's averages
    rounds: list[list[StepTime]] = []
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        for state.step in range(1, tries + 1):
            path = step_path(Path(inner), state.step)
            save = partial(save_step, path.parent, state, {}, best=False, keep_last=2)
            works: list[Work] = [save, partial(read_checkpoint, path), partial(write_as_many_bytes, path)]
            rounds.append([time_steps(work, 1, CPU)[0] for work in works])
            size = path.stat().st_size
    medians = [
        StepTime(median(one.wall for one in times), median(one.cpu for one in times))
        for times in zip(*rounds, strict=True)
    ]
    return SavingTimes(state.model.parameter_count(), size, *medians)


def write_as_many_bytes(like: Path) -> None:
    """Write as many bytes to the disk as `like` has, piece by piece: no way of saving takes less."""
    piece = bytes(1 << 20)
    with like.with_name("plain").open("wb") as file:
        for _ in range(like.stat().st_size >> 20):
            file.write(piece)
        os.fsync(file.fileno())


def measure_run(shapes: Sequence[str], effort: TimingOptions, say: Say) -> dict[str, Any]:
    """Measure saving, on the disk of the working folder, and the overhead at each shape; return both for JSON."""
    torch.set_num_threads(effort.threads)
    saving = measure_saving(Path.cwd(), effort.rounds)
    report: dict[str, Any] = {"saving": asdict(saving), "overhead": {}}
    for name in shapes:
        overhead = measure_overhead(SHAPES[name], effort.steps, effort.warmup)
        say(overhead_table(name, overhead))
        report["overhead"][name] = asdict(overhead) | {"share": overhead.share()}
    head = (f"{saving.parameters / 1e6:.1f} million parameters, {saving.size / 1e6:.0f} MB", "s", "CPU s")
    works = (("save", saving.save), ("verify and load", saving.load), ("write as many bytes", saving.plain))
    say(format_table([head, *((work, f"{took.wall:.2f}", f"{took.cpu:.2f}") for work, took in works)]))
    return report


def overhead_table(shape: str, overhead: Overhead) -> str:
    """Return a line for each part of a step."""
    rows = [(shape, "CPU ms a step", "share")]
    rows += [(name, f"{1e3 * cpu:.3f}", f"{overhead.share(name):.3%}") for name, cpu in overhead.parts.items()]
    rows += [("all but draw", f"{1e3 * overhead.share() * overhead.step:.3f}", f"{overhead.share():.3%}")]
    return format_table([*rows, ("the whole step", f"{1e3 * overhead.step:.3f}", "")])


@dataclass(frozen=True)
class MemorySample:
    """Memory held after a step: tensors and their bytes; resident bytes, 0 if the system does not say."""

    step: int
    resident: int
    live: int
    tensors: int


@dataclass(frozen=True)
class MemoryGrowth:
    """Memory that a contestant held early and late."""

    contestant: str
    early: MemorySample
    late: MemorySample

    @property
    def grew(self) -> bool:
        """True if live tensors grew, or the resident size grew by more than allocator noise."""
        more = (self.late.live, self.late.tensors) > (self.early.live, self.early.tensors)
        return more or self.late.resident > self.early.resident * (1 + NOISE)


def watch_memory(name: str, shape: Shape, steps: int, threads: int) -> MemoryGrowth:
    """Take `steps` steps in a fresh process; compare memory after the first tenth, or two epochs, with the end.

    The order of two epochs is held in memory, so the early look comes after them if there are enough steps.

    Raises:
        RaceFailed: the contestant could not take them.
    """
    two_epochs = 2 * SEQUENCES // (shape.B * shape.accum_steps) + 1
    marks = [max(steps // 10, two_epochs if two_epochs < steps else 0), steps]
    asked = {"contestant": name, "shape": shape.model_dump(), "steps": steps, "marks": marks, "threads": threads}
    early, late = (MemorySample(**held) for held in run_worker("memory", asked))
    return MemoryGrowth(name, early, late)


def memory_table(watches: Sequence[MemoryGrowth]) -> str:
    """Return two lines for each contestant."""
    rows: list[tuple[str, ...]] = [("", "step", "resident MiB", "tensors", "their bytes", "")]
    for one in watches:
        for held, verdict in ((one.early, ""), (one.late, "grew" if one.grew else "did not grow")):
            facts = (str(held.step), format_mib(held.resident or None), str(held.tensors), f"{held.live:,}")
            rows.append((one.contestant, *facts, verdict))
    return format_table(rows)
