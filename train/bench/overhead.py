"""What a run adds to the bare learning: its checks, saving a checkpoint, and memory that grows over many steps."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import TrainState, save_step
from train.artifacts.paths import step_path
from train.bench.contestants import SEQUENCES, built, source, train_cfg
from train.bench.race import Effort, Say, answer
from train.bench.shapes import SHAPES, Shape
from train.cli.output import mib, table
from train.loop.evaluate import Yardstick
from train.loop.logger import Report
from train.loop.steps import optimizer_step

SAVED = ModelCfg(V=16384, T=512, C=512, L=5, H=8, d_ff=1488, tie_embeddings=True)  # 25 million parameters
BATCHES, BATCH_SECONDS = 7, 0.1  # of a part's repeats; the middle batch counts
NOISE = 0.02  # of what is resident: pages come and go with the allocator
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


class Seconds(NamedTuple):
    """What something took: by the clock, and of the CPU, which is less where the machine was waited for."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Saving:
    """What it took, the middle of some, to save a checkpoint, to verify and load it, to write as many bytes."""

    parameters: int
    size: int
    save: Seconds
    load: Seconds
    plain: Seconds


def overhead(shape: Shape, steps: int, warmup: int) -> Overhead:
    """Measure steps of a shape by CPU time, then each part by itself."""
    cfg = train_cfg(shape, {}, steps)
    state, drawn = built(shape, cfg), source(shape)

    def step() -> None:
        optimizer_step(state, cfg, drawn, nullcontext, cfg.base_lr)

    for _ in range(warmup):
        step()
    of_a_step = median(taken(step).cpu for _ in range(steps))
    with tempfile.TemporaryDirectory() as folder:
        report = Report(Path(folder), cfg.total_steps, state, Yardstick(1.0, 1.0))
        works = parts(shape, drawn.draw(0, cfg.effective_batch), state, report)
        seconds = {name: each(work) for name, work in works.items()}
    seconds["metrics"] /= cfg.log_every  # a line comes only so often
    return Overhead(of_a_step, seconds)


def parts(shape: Shape, batch: Batch, state: TrainState, report: Report) -> dict[str, Work]:
    """Return what is done in each step besides learning; `metrics` is one line of metrics.jsonl."""
    drawn, numbers, loss, norm = source(shape), count(), torch.tensor(2.5), torch.tensor(0.5)
    sequences = len(batch.x)
    return {
        "draw": lambda: drawn.draw(next(numbers) * sequences, sequences),
        "require_ids": lambda: require_ids(batch, shape.model.V),
        "finite": lambda: bool(torch.isfinite(loss + norm)),
        "metrics": lambda: report.train(state, loss.item(), 1e-3, norm.item()),
    }


def taken(work: Work) -> Seconds:
    """Return what some work took, the CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def each(work: Work) -> float:
    """Return the CPU seconds of one of many repeats, the median of some batches of them."""

    def batch() -> float:
        started, repeats = time.process_time(), 0
        while (spent := time.process_time() - started) < BATCH_SECONDS:
            for _ in range(10):
                work()
            repeats += 10
        return spent / repeats

    return median(batch() for _ in range(BATCHES))


def saving(folder: Path, tries: int) -> Saving:
    """Save, verify and load a checkpoint with AdamW's state some times, as a run does, on the disk of `folder`."""
    state = with_state(SAVED)
    saves, loads, plains = [], [], []
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        for state.step in range(1, tries + 1):
            path = step_path(Path(inner), state.step)
            saves.append(taken(partial(save_step, path.parent, state, {}, best=False, keep_last=2)))
            loads.append(taken(partial(read_checkpoint, path)))
            size = path.stat().st_size
            plains.append(taken(partial(plain_write, path.with_name("plain"), size)))
    return Saving(state.model.parameter_count(), size, middle(saves), middle(loads), middle(plains))


def middle(many: list[Seconds]) -> Seconds:
    """Return the median of each clock."""
    return Seconds(median(one.wall for one in many), median(one.cpu for one in many))


def with_state(cfg: ModelCfg) -> TrainState:
    """Return a model and its optimizer after a step, so that all its averages are there."""
    shape = Shape(model=cfg, B=1, accum_steps=1)
    state = built(shape, train_cfg(shape, {}, 1))
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return state


def plain_write(path: Path, size: int) -> None:
    """Write so many bytes to the platter, piece by piece: no way of saving takes less."""
    piece = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
        os.fsync(file.fileno())


def measure(shapes: Sequence[str], effort: Effort, say: Say) -> dict[str, Any]:
    """Measure both, on the disk of the working folder, say it, and return it for programs."""
    torch.set_num_threads(effort.threads)
    saved = saving(Path.cwd(), effort.rounds)
    report: dict[str, Any] = {"saving": asdict(saved), "overhead": {}}
    for name in shapes:
        found = overhead(SHAPES[name], effort.steps, effort.warmup)
        say(shares_table(name, found))
        report["overhead"][name] = asdict(found) | {"share": found.share()}
    say(saving_table(saved))
    return report


def shares_table(shape: str, found: Overhead) -> str:
    """Return the parts of a step for people."""
    rows = [(shape, "CPU ms a step", "share")]
    rows += [(name, f"{1e3 * cpu:.3f}", f"{found.share(name):.3%}") for name, cpu in found.parts.items()]
    rows += [("all but draw", f"{1e3 * found.share() * found.step:.3f}", f"{found.share():.3%}")]
    return table([*rows, ("the whole step", f"{1e3 * found.step:.3f}", "")])


def saving_table(saved: Saving) -> str:
    """Return what a checkpoint takes for people."""
    head = (f"{saved.parameters / 1e6:.1f} million parameters, {saved.size / 1e6:.0f} MB", "s", "CPU s")
    whats = (("save", saved.save), ("verify and load", saved.load), ("write as many bytes", saved.plain))
    return table([head, *((what, f"{one.wall:.2f}", f"{one.cpu:.2f}") for what, one in whats)])


@dataclass(frozen=True)
class Held:
    """What a process holds after a step: tensors and their bytes; resident bytes, 0 where the system is silent."""

    step: int
    resident: int
    live: int
    tensors: int


@dataclass(frozen=True)
class Stay:
    """What a contestant held early and late."""

    contestant: str
    early: Held
    late: Held

    @property
    def grew(self) -> bool:
        """Whether there are more tensors, or more is resident than the allocator's noise."""
        more = (self.late.live, self.late.tensors) > (self.early.live, self.early.tensors)
        return more or self.late.resident > self.early.resident * (1 + NOISE)


def stay(name: str, shape: Shape, steps: int, threads: int) -> Stay:
    """Take that many steps in a fresh process; look at what is held after some of them and after the last.

    Some are a tenth, and if there are that many, those that draw two epochs: of so many the order is held.

    Raises:
        RaceFailed: it could not take them.
    """
    two_epochs = 2 * SEQUENCES // (shape.B * shape.accum_steps) + 1
    marks = [max(steps // 10, two_epochs if two_epochs < steps else 0), steps]
    asked = {"contestant": name, "shape": shape.model_dump(), "steps": steps, "marks": marks, "threads": threads}
    early, late = (Held(**held) for held in answer("stay", asked, {}))
    return Stay(name, early, late)


def stays_table(stays: Sequence[Stay]) -> str:
    """Return two lines for each contestant."""
    rows: list[tuple[str, ...]] = [("", "step", "resident MiB", "tensors", "their bytes", "")]
    for one in stays:
        for held in (one.early, one.late):
            verdict = ("grew" if one.grew else "did not grow") if held is one.late else ""
            facts = (str(held.step), mib(held.resident or None), str(held.tensors), f"{held.live:,}")
            rows.append((one.contestant, *facts, verdict))
    return table(rows)
