"""Time training steps, measure their memory, and predict it from theory.

N is the number of tokens in a microbatch; other letters are ModelCfg's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import TokenStream
from niels_gpt.data.cache.token_files import TokenFiles
from niels_gpt.device import measure_memory, reset_peak_memory
from niels_gpt.errors import NielsError, first_line, is_out_of_memory
from niels_gpt.loss import ROWS, allows_softmax_in_place
from train.artifacts.checkpointing import TrainState
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.cpu import prepare_cpu
from train.hardware.memory_tracker import LiveBytes
from train.hardware.preflight import check_device
from train.loop.amp import amp_factory
from train.loop.model import make_model
from train.loop.optim import make_optimizer
from train.loop.steps import optimizer_step

FLOAT = 4  # bytes
NO_ROOM = "out of memory"
SEQUENCES = 64  # of random ids, to draw from
Step = Callable[[TrainCfgSchema], object]


class StepTime(NamedTuple):
    """Wall seconds, and CPU seconds of all threads, which leave out waiting for a busy machine."""

    wall: float
    cpu: float


def read_clocks(device: torch.device) -> StepTime:
    """Return the time once the device has done its work."""
    if device.type == "mps":
        torch.mps.synchronize()
    return StepTime(time.perf_counter(), time.process_time())


def subtract_times(stamps: Sequence[StepTime]) -> list[StepTime]:
    """Return the seconds between the times."""
    return [StepTime(b.wall - a.wall, b.cpu - a.cpu) for a, b in pairwise(stamps)]


def time_steps(step: Callable[[], object], count: int, device: torch.device) -> list[StepTime]:
    """Take `count` steps and return the seconds of each."""
    stamps = [read_clocks(device)]
    for _ in range(count):
        step()
        stamps.append(read_clocks(device))
    return subtract_times(stamps)


@dataclass(frozen=True)
class Cost:
    """The cost of an optimizer step: median seconds, and bytes above the weights and the optimizer's state.

    `theory` is for float32 and fused attention. `driver` is what the Metal driver holds afterwards, weights
    included, None on the CPU. `trouble` says why there is no measurement.
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
    for precision in ("fp16", "bf16", "off") if device.type == "mps" else ("off",):
        amp = {"amp": False} if precision == "off" else {"amp": True, "amp_dtype": precision}
        for ckpt in (False, True):
            chosen = amp | {"loss_scaling": False, "activation_checkpointing": ckpt}
            yield cfg.model_copy(update={"train": cfg.train.model_copy(update=chosen)})


def measure_cost(device: torch.device, cfg: RunCfg, steps: int) -> Cost:
    """Measure one warm step's memory and the time of `steps` more; an error becomes the cost's trouble."""
    train = cfg.train
    memory = "ckpt" if train.activation_checkpointing else "off"
    cost = Cost(train.amp_dtype if train.amp else "off", memory, predict_peak(cfg.model, train, device))
    try:
        check_device(device, cfg)
        step = partial(make_step(device, cfg.model, train, isolate=cfg.isolate), train)
        step()
        with LiveBytes() as live:
            step()
        seconds = median(taken.wall for taken in time_steps(step, steps, device))
    except (NielsError, RuntimeError, MemoryError) as error:
        return replace(cost, trouble=describe_trouble(error))
    speed = train.effective_batch * cfg.model.T / seconds
    driver = measure_memory(device) if device.type == "mps" else None
    return replace(cost, seconds=seconds, tokens_per_second=speed, peak=live.peak, driver=driver)


def describe_trouble(error: Exception) -> str:
    """Return in a few words why there is no measurement."""
    return NO_ROOM if is_out_of_memory(error) else first_line(error)


def make_step(device: torch.device, cfg: ModelCfg, train: TrainCfgSchema, *, isolate: bool) -> Step:
    """Return a function that takes an optimizer step of a new model on random ids, without changing its weights.

    Its argument is `train`, with any number of microbatches.
    """
    prepare_cpu(device)
    reset_peak_memory(device)  # of the model before
    state, source = make_state(device, cfg, train), make_source(cfg, isolate=isolate)
    amp = amp_factory(device, train)
    return lambda train: optimizer_step(state, train, source, amp, lr=0.0)


def make_state(device: torch.device, cfg: ModelCfg, train: TrainCfgSchema) -> TrainState:
    """Return a new model and its optimizer, as a run makes them."""
    model = make_model(cfg, train, device)
    return TrainState(model, make_optimizer(model, train))


def make_source(cfg: ModelCfg, *, isolate: bool = False) -> TokenStream:
    """Return sequences of random ids in documents of 50 to 300 tokens, drawn as a run draws them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(cfg.V, (SEQUENCES * cfg.T + 1,), generator=generator)
    lengths = torch.randint(50, 301, (len(ids) // 50,), generator=generator)
    offsets = (lengths.cumsum(0) - lengths).clamp(max=len(ids))
    return TokenStream(TokenFiles(ids, torch.empty(0), offsets), cfg.T, seed=0, isolate=isolate)


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
    weights = 2 * cfg.C * cfg.C * (cfg.H + cfg.kv_heads) // cfg.H + 3 * cfg.C * cfg.d_ff  # of a block
    again = gradient + block + max(cfg.L * inputs, inputs + cfg.L * weights)
    return FLOAT * max(cfg.L * inputs + head, again)
