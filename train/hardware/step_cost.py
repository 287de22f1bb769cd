"""Measure the time and memory of a training step, and predict them from theory.

N is the number of tokens in a microbatch; other letters are ModelCfg's.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch
from niels_gpt.errors import NielsError, first_line, is_out_of_memory
from niels_gpt.loss import ROWS, allows_softmax_in_place
from train.artifacts.checkpointing import TrainState
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.cpu import prefer_onednn
from train.hardware.memory_tracker import LiveBytes
from train.hardware.preflight import known_fault, torch_version
from train.loop.amp import Amp, amp_factory
from train.loop.model import make_model
from train.loop.optim import lr_at, make_optimizer
from train.loop.steps import optimizer_step

PRECISIONS = ("fp16", "bf16", "off")
FLOAT = 4  # bytes
NO_ROOM = "out of memory"


@dataclass(frozen=True)
class Cost:
    """What an optimizer step takes: median seconds, and bytes above the weights and the optimizer's state.

    `theory` is for float32 and fused attention. `driver` is all that the Metal driver held at the highest,
    weights included, None on the CPU. `trouble` says why there is no measurement.
    """

    precision: str
    memory: str
    theory: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak: int | None = None
    driver: int | None = None
    trouble: str = ""


def variants(device: torch.device, cfg: RunCfg) -> Iterator[RunCfg]:
    """Yield `cfg` with each precision and memory; on the CPU all precisions are the same program."""
    for precision in PRECISIONS if device.type == "mps" else ("off",):
        amp = {"amp": False} if precision == "off" else {"amp": True, "amp_dtype": precision}
        for ckpt in (False, True):
            chosen = amp | {"loss_scaling": False, "activation_checkpointing": ckpt}
            train = cfg.train.model_copy(update=chosen)
            yield cfg.model_copy(update={"train": train})


def measured(device: torch.device, cfg: RunCfg, steps: int) -> Cost:
    """Measure a variant; what goes wrong is part of the answer."""
    train = cfg.train
    memory = "ckpt" if train.activation_checkpointing else "off"
    cost = Cost(train.amp_dtype if train.amp else "off", memory, theory(cfg.model, train, device))
    if device.type == "mps" and (fault := known_fault(cfg, torch_version())):
        return replace(cost, trouble=". ".join(fault))
    try:
        return _stepped(device, cfg, steps, cost)
    except (NielsError, RuntimeError, MemoryError) as error:
        return replace(cost, trouble=reason(error))
    finally:
        gc.collect()
        if device.type == "mps":
            torch.mps.empty_cache()


def reason(error: Exception) -> str:
    """Return in a few words why there is no measurement."""
    if is_out_of_memory(error):
        return NO_ROOM
    return first_line(error)


def _stepped(device: torch.device, cfg: RunCfg, steps: int, cost: Cost) -> Cost:
    """Take a step to warm up, one under the counter, and `steps` by the clock."""
    train, step = cfg.train, stepper(device, cfg)
    step(train)
    with LiveBytes(device) as live:
        step(train)
    seconds = median(step(train) for _ in range(steps))
    return replace(
        cost,
        seconds=seconds,
        tokens_per_second=train.effective_batch * cfg.model.T / seconds,
        peak=live.peak,
        driver=live.driver or None,
    )


def stepper(device: torch.device, cfg: RunCfg) -> Callable[[TrainCfgSchema], float]:
    """Return what takes a timed step, of as many microbatches as it is told, of a new model on random ids."""
    train = cfg.train
    if device.type == "cpu":
        prefer_onednn()  # as in a run
    model = make_model(cfg.model, train, device)
    state = TrainState(model, make_optimizer(model, train))
    return partial(_step, state, RandomIds(cfg.model), amp_factory(device, train))


def _step(state: TrainState, source: "RandomIds", amp: Amp, cfg: TrainCfgSchema) -> float:
    """Take one optimizer step and return its seconds."""
    started = time.perf_counter()
    optimizer_step(state, cfg, source, amp, lr_at(state.step, cfg))
    if state.model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started


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


def theory(cfg: ModelCfg, train: TrainCfgSchema, device: torch.device) -> int:
    """Return the bytes above weights and optimizer state at the peak of a microbatch, in float32, dropout 0.

    A block keeps 10 N C + 4 N d_ff floats for the backward pass, attention being fused, or its input N C alone if
    it is recomputed. The head has logits of ROWS tokens, the probabilities in their place (softmax in place) or
    beside them, and a gradient of V C. Without recomputation the peak is where all blocks wait for the
    backward pass; with it, where one is made again: the first to be, while the inputs of all wait, or the last,
    when the gradients of all blocks are there.
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


def savings(costs: list[Cost]) -> list[dict[str, Any]]:
    """Return for each precision the bytes that memory=ckpt saves, measured and in theory, and its time ratio."""
    found = []
    for off, ckpt in pairs(costs):
        saving: dict[str, Any] = {"precision": off.precision, "theory": off.theory - ckpt.theory}
        if off.peak and ckpt.peak and off.seconds and ckpt.seconds:
            saving |= {"peak": off.peak - ckpt.peak, "time": ckpt.seconds / off.seconds}
        found.append(saving)
    return found


def pairs(costs: list[Cost]) -> Iterator[tuple[Cost, Cost]]:
    """Yield each precision's costs without and with recomputation."""
    yield from zip(costs[::2], costs[1::2], strict=True)
