"""Time training steps, measure their memory, and predict it from theory.

N is the number of tokens in a microbatch; other letters are ModelCfg's.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch
from niels_gpt.errors import NielsError, first_line, is_out_of_memory
from niels_gpt.loss import ROWS, allows_softmax_in_place
from train.artifacts.checkpointing import TrainState
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.cpu import prefer_onednn
from train.hardware.memory_tracker import LiveBytes
from train.hardware.preflight import find_known_fault
from train.loop.amp import amp_factory
from train.loop.model import make_model
from train.loop.optim import lr_at, make_optimizer
from train.loop.steps import optimizer_step

PRECISIONS = ("fp16", "bf16", "off")
FLOAT = 4  # bytes
NO_ROOM = "out of memory"


class StepTime(NamedTuple):
    """Wall seconds, and CPU seconds of all threads, which leave out waiting for a busy machine."""

    wall: float
    cpu: float


class StepTimer:
    """Time steps: call it at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stamps = [StepTime(time.perf_counter(), time.process_time())]

    def __call__(self) -> None:
        """Note the end of a step."""
        if self.device.type == "mps":
            torch.mps.synchronize()
        self.stamps.append(StepTime(time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> list[StepTime]:
        """Seconds of each step."""
        return [StepTime(b.wall - a.wall, b.cpu - a.cpu) for a, b in pairwise(self.stamps)]


def time_steps(step: Callable[[], object], count: int, device: torch.device) -> list[StepTime]:
    """Take `count` steps and return the seconds of each."""
    timer = StepTimer(device)
    for _ in range(count):
        step()
        timer()
    return timer.seconds


@dataclass(frozen=True)
class Cost:
    """The cost of an optimizer step: median seconds, and bytes above the weights and the optimizer's state.

    `theory` is for float32 and fused attention. `driver` is the most that the Metal driver held, weights included,
    None on the CPU. `trouble` says why there is no measurement.
    """

    precision: str
    memory: str
    theory: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak: int | None = None
    driver: int | None = None
    trouble: str = ""


def list_variants(device: torch.device, cfg: RunCfg) -> Iterator[RunCfg]:
    """Yield `cfg` with each precision and memory; on the CPU all precisions are the same program."""
    for precision in PRECISIONS if device.type == "mps" else ("off",):
        amp = {"amp": False} if precision == "off" else {"amp": True, "amp_dtype": precision}
        for ckpt in (False, True):
            chosen = amp | {"loss_scaling": False, "activation_checkpointing": ckpt}
            yield cfg.model_copy(update={"train": cfg.train.model_copy(update=chosen)})


def measure_cost(device: torch.device, cfg: RunCfg, steps: int) -> Cost:
    """Measure one warm step's memory and the time of `steps` more; an error becomes the cost's trouble."""
    train = cfg.train
    memory = "ckpt" if train.activation_checkpointing else "off"
    cost = Cost(train.amp_dtype if train.amp else "off", memory, predict_peak(cfg.model, train, device))
    if fault := find_known_fault(device, cfg):
        return replace(cost, trouble=". ".join(fault))
    try:
        step = partial(make_step(device, cfg), train)
        step()
        with LiveBytes(device) as live:
            step()
        seconds = median(taken.wall for taken in time_steps(step, steps, device))
        speed = train.effective_batch * cfg.model.T / seconds
        return replace(cost, seconds=seconds, tokens_per_second=speed, peak=live.peak, driver=live.driver or None)
    except (NielsError, RuntimeError, MemoryError) as error:
        return replace(cost, trouble=explain(error))
    finally:
        gc.collect()
        if device.type == "mps":
            torch.mps.empty_cache()


def explain(error: Exception) -> str:
    """Return in a few words why there is no measurement."""
    return NO_ROOM if is_out_of_memory(error) else first_line(error)


def make_step(device: torch.device, cfg: RunCfg) -> Callable[[TrainCfgSchema], object]:
    """Return a function that takes an optimizer step of a new model on random ids.

    Its argument is `cfg.train`, with any number of microbatches.
    """
    if device.type == "cpu":
        prefer_onednn()  # as in a run
    model = make_model(cfg.model, cfg.train, device)
    state = TrainState(model, make_optimizer(model, cfg.train))
    source, amp = RandomIds(cfg.model), amp_factory(device, cfg.train)
    return lambda train: optimizer_step(state, train, source, amp, lr_at(state.step, train))


class RandomIds:
    """Sequences of random token ids, every one a target."""

    def __init__(self, cfg: ModelCfg) -> None:
        self.V, self.T = cfg.V, cfg.T

    def __len__(self) -> int:
        return 1 << 30

    def draw(self, first: int, count: int) -> Batch:
        """Return `count` sequences, (count, T) each."""
        generator = torch.Generator().manual_seed(first)
        ids = torch.randint(self.V, (count, self.T + 1), generator=generator)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def predict_peak(cfg: ModelCfg, train: TrainCfgSchema, device: torch.device) -> int:
    """Return the bytes above weights and optimizer state at the peak of a microbatch, in float32, dropout 0.

    A block keeps 10 N C + 4 N d_ff floats for the backward pass with fused attention, or its input N C alone if
    it is recomputed. The head has logits of ROWS tokens, the probabilities in their place (softmax_in_place) or
    beside them, and a gradient of V C. Without recomputation the peak comes when all blocks wait for the backward
    pass. With it, the peak comes in the head or when a block is recomputed: the first one, while the inputs of
    all wait, or the last one, when the gradients of all blocks are there.
    """
    N = train.B * cfg.T
    inputs, block = N * cfg.C, N * (10 * cfg.C + 4 * cfg.d_ff)
    buffers, gradient = 1 if allows_softmax_in_place(device) else 2, cfg.V * cfg.C
    head = buffers * min(N, ROWS) * cfg.V + gradient
    if not train.activation_checkpointing:
        return FLOAT * (cfg.L * block + head)
    weights = 4 * cfg.C * cfg.C + 3 * cfg.C * cfg.d_ff  # of a block
    again = gradient + block + max(cfg.L * inputs, inputs + cfg.L * weights)
    return FLOAT * max(cfg.L * inputs + head, again)
