"""What a run adds to the bare learning: the share of a step that its checks take, and the seconds of a checkpoint."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.weights import read_checkpoint
from train.bench.contestants import CPU, built, source, train_cfg
from train.bench.shapes import Shape
from train.checkpointing import TrainState, save_step, step_path
from train.evaluate import Yardstick
from train.report import Report
from train.train_loop import optimizer_step, require_finite

SAVED = ModelCfg(V=16384, T=512, C=512, L=5, H=8, d_ff=1488)  # 25 million parameters
BATCHES, BATCH_SECONDS = 7, 0.1  # of a part's repeats; the middle batch counts
Work = Callable[[], object]


@dataclass(frozen=True)
class Overhead:
    """CPU seconds of a step, and of each thing in it that is no learning."""

    step: float
    parts: dict[str, float]

    def share(self, *names: str) -> float:
        """Return the share of a step that some parts take, all but the drawing if none is named."""
        asked = names or tuple(name for name in self.parts if name != "draw")
        return sum(self.parts[name] for name in asked) / self.step


@dataclass(frozen=True)
class Saving:
    """Seconds by the clock, the middle of some: to save a checkpoint, to verify and load it, to write its bytes."""

    parameters: int
    size: int
    save: float
    load: float
    plain: float


def overhead(shape: Shape, steps: int, warmup: int) -> Overhead:
    """Measure steps of a shape by CPU time, then each part by itself."""
    cfg = train_cfg(shape, {}, steps)
    state, drawn = built(shape, cfg), source(shape)

    def step() -> None:
        optimizer_step(state, cfg, drawn, nullcontext, cfg.base_lr)

    for _ in range(warmup):
        step()
    of_a_step = median(cpu_seconds(step) for _ in range(steps))
    with tempfile.TemporaryDirectory() as folder:
        report = Report(Path(folder), cfg.total_steps, 0, shape.tokens, CPU, Yardstick(1.0, 1.0))
        works = parts(shape, drawn.draw(0, cfg.effective_batch), report)
        seconds = {name: each(work) for name, work in works.items()}
    seconds["metrics"] /= cfg.log_every  # a line comes only so often
    return Overhead(of_a_step, seconds)


def parts(shape: Shape, batch: Batch, report: Report) -> dict[str, Work]:
    """Return what is done in each step besides learning; `metrics` is one line of metrics.jsonl."""
    drawn, numbers, loss, norm = source(shape), count(), torch.tensor(2.5), torch.tensor(0.5)
    sequences = len(batch.x)
    return {
        "draw": lambda: drawn.draw(next(numbers) * sequences, sequences),
        "require_ids": lambda: require_ids(batch, shape.model.V),
        "require_finite": lambda: require_finite(loss, norm, 1),
        "metrics": lambda: report.train(next(numbers) + 1, loss.item(), 1e-3, norm.item()),
    }


def cpu_seconds(work: Work) -> float:
    """Return the CPU seconds of all threads that some work took."""
    started = time.process_time()
    work()
    return time.process_time() - started


def each(work: Work) -> float:
    """Return the CPU seconds of one of many repeats, the median of some batches of them."""

    def batch() -> float:
        started, repeats = time.process_time(), 0
        while (taken := time.process_time() - started) < BATCH_SECONDS:
            for _ in range(10):
                work()
            repeats += 10
        return taken / repeats

    return median(batch() for _ in range(BATCHES))


def saving(folder: Path, tries: int, cfg: ModelCfg = SAVED) -> Saving:
    """Save, verify and load a checkpoint with AdamW's state some times, as a run does, on the disk of `folder`."""
    state = with_state(cfg)
    saves, loads, plains = [], [], []
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        out = Path(inner)
        for state.step in range(1, tries + 1):
            path = step_path(out, state.step)
            saves.append(wall_seconds(lambda: save_step(out, state, {}, best=False, keep_last=2)))
            loads.append(wall_seconds(lambda path=path: read_checkpoint(path)))
            plains.append(plain_write(out / "plain", path.stat().st_size))
        size = path.stat().st_size
    return Saving(state.model.parameter_count(), size, median(saves), median(loads), median(plains))


def with_state(cfg: ModelCfg) -> TrainState:
    """Return a model and its optimizer after a step, so that all its averages are there."""
    state = built(Shape(cfg, B=1, accum_steps=1), train_cfg(Shape(cfg, 1, 1), {}, 1))
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return state


def wall_seconds(work: Work) -> float:
    """Return the seconds by the clock that some work took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain_write(path: Path, size: int) -> float:
    """Return the seconds that so many bytes take to the platter: what no way of saving goes below."""
    content = os.urandom(1 << 20) * (size >> 20)

    def write() -> None:
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())

    return wall_seconds(write)
