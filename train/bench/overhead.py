"""Measure the overhead of a run: per-step checks, saving, memory growth, and threads that spin at barriers."""

import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import require_valid_ids
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.paths import step_path
from train.artifacts.checkpointing import save_step
from train.bench.contestants import CPU, make_train_cfg
from train.bench.race import run_worker, take_turn
from train.bench.shapes import SHAPES, Shape
from train.bench.worker import WARMUP_STEPS
from train.cli.output import format_mib, format_table
from train.hardware.step_cost import make_source, make_state, time_steps
from train.loop.evaluate import UnigramBaseline
from train.loop.logger import RunLogger
from train.loop.steps import optimizer_step

SAVED = ModelCfg(V=16384, T=512, C=512, L=5, H=8, d_ff=1488, tie_embeddings=True)  # 25 million parameters
SAVES = 3  # and as many loads; the median counts
BATCHES, REPEATS = 7, 1000  # of a part; the median batch counts
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with its parent
SPIN_COUNTS = [300_000, 30_000, 10_000, 3_000, 1_000, 0]  # first libgomp's own without OMP_WAIT_POLICY


def measure_overhead(shape: str, steps: int) -> dict[str, Any]:
    """Measure the CPU seconds of a step, of the same within documents, and of each part that is not learning.

    Print a table. The documents have 50 to 300 tokens.
    """
    sizes = SHAPES[shape]
    cfg = make_train_cfg(sizes, {}, steps)
    state, source, numbers = make_state(CPU, sizes.model, cfg), make_source(sizes.model), count()
    turns = cycle((source, make_source(sizes.model, isolate=True)))
    times = time_steps(
        lambda: optimizer_step(state, cfg, next(turns), nullcontext, cfg.base_lr), 2 * (WARMUP_STEPS + steps), CPU
    )
    step, isolated = (median(taken.cpu for taken in times[2 * WARMUP_STEPS + n :: 2]) for n in (0, 1))
    sequences, loss, norm = cfg.effective_batch, torch.tensor(2.5), torch.tensor(0.5)
    batch = source.draw(0, sequences)
    with tempfile.TemporaryDirectory() as folder:
        logger = RunLogger(Path(folder), cfg.total_steps, state, UnigramBaseline(1.0, 1.0))
        parts = {
            "draw": time_repeats(lambda: source.draw(next(numbers) * sequences, sequences)),
            "require_ids": time_repeats(lambda: require_valid_ids(batch, sizes.model.V)),
            "finite": time_repeats(lambda: bool(torch.isfinite(loss + norm))),
            # A line of metrics.jsonl is written only so often.
            "metrics": time_repeats(lambda: logger.log_step(state, loss.item(), 1e-3, norm.item()))
            / cfg.log_every,
        }
    checks = sum(parts.values()) - parts["draw"]
    rows = [(shape, "CPU ms a step", "share")]
    wholes = {"all but draw": checks, "the whole step": step, "the same, data.isolate=true": isolated}
    for name, seconds in (parts | wholes).items():
        rows.append((name, f"{1e3 * seconds:.3f}", f"{seconds / step:.3%}"))
    print(format_table(rows))
    return {"step": step, "isolated": isolated, "parts": parts, "share": checks / step}


def time_repeats(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some short work, the median over batches of repeats."""
    return median(timeit.repeat(work, timer=time.process_time, repeat=BATCHES, number=REPEATS)) / REPEATS


def measure_saving(folder: Path) -> dict[str, Any]:
    """Time how a run saves, verifies and loads a checkpoint on the disk of `folder`; print a table."""
    cfg = make_train_cfg(Shape(model=SAVED, B=1, accum_steps=1), {}, 1)
    state, seconds = make_state(CPU, SAVED, cfg), list[list[float]]()
    optimizer_step(state, cfg, make_source(SAVED), nullcontext, cfg.base_lr)  # makes AdamW's averages
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        for state.step in range(1, SAVES + 1):
            path = step_path(Path(inner), state.step)
            works: dict[str, Callable[[], object]] = {
                "save": partial(save_step, path.parent, state, {}, best=False, keep_last=2),
                "verify and load": partial(read_checkpoint, path),
                "write as many bytes": partial(write_as_many_bytes, path),
            }
            seconds.append([time_steps(work, 1, CPU)[0].wall for work in works.values()])
            size = path.stat().st_size
    medians = dict(zip(works, map(median, zip(*seconds, strict=True)), strict=True))
    parameters = state.model.parameter_count()
    head = (f"{parameters / 1e6:.1f} million parameters, {size / 1e6:.0f} MB", "s")
    print(format_table([head, *((work, f"{wall:.2f}") for work, wall in medians.items())]))
    return {"parameters": parameters, "size": size, "seconds": medians}


def write_as_many_bytes(like: Path) -> None:
    """Write as many bytes to the disk as `like` has: no way of saving takes less."""
    with like.with_name("plain").open("wb") as file:
        file.write(bytes(like.stat().st_size))
        os.fsync(file.fileno())


def watch_memory(name: str, contestants: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Take steps in fresh processes; print and return the memory held after a tenth of them and at the end."""
    samples: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = [("", "step", "resident MiB", "tensors", "their bytes")]
    for contestant in contestants:
        asked = {"contestant": contestant, "shape": SHAPES[name].model_dump(), "steps": steps}
        for sample in run_worker("watch_memory", asked):
            samples.append({"contestant": contestant} | sample)
            resident, held = format_mib(sample["resident"] or None), f"{sample['bytes']:,}"
            rows.append((contestant, str(sample["step"]), resident, str(sample["tensors"]), held))
    print(format_table(rows))
    return samples


def measure_spinning(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Time steps at a shape with each spin count, in turns; print medians and shares of the first one, alone."""
    shape, rows = SHAPES[name], [("spin count", "quiet tokens/s", "share", "busy tokens/s", "share")]
    speeds: dict[int, dict[str, list[float]]] = {n: {"quiet": [], "busy": []} for n in SPIN_COUNTS}
    for number in range(rounds):
        for spins, found in speeds.items():
            for load, processes in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with busy_processes(processes):
                    turn = take_turn("ours", shape, steps, variables={"GOMP_SPINCOUNT": str(spins)})
                found[load].append(shape.tokens / turn.wall)
                print(f"{name} round {number + 1}: spin count {spins:<9,} {load}: {found[load][-1]:,.0f} tokens/s")
    whole = median(speeds[SPIN_COUNTS[0]]["quiet"])
    for spins, found in speeds.items():
        quiet, busy = (median(found[load]) for load in ("quiet", "busy"))
        rows.append((f"{spins:,}", f"{quiet:,.0f}", f"{quiet / whole:.0%}", f"{busy:,.0f}", f"{busy / whole:.0%}"))
    print(format_table(rows))
    return {"shape": name, "steps": steps, "tokens_per_second": speeds}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many cores busy with a process each."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
