"""Measure one B in a fresh process: read a RunCfg from stdin, print a Probe as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch

from niels_gpt.device import memory_in_use, resolve_device
from niels_gpt.errors import NielsError
from train.cli.subprocesses import end_with_parent
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.cpu import prepare_cpu
from train.hardware.preflight import find_known_fault
from train.hardware.step_cost import explain, make_step, time_steps

FEW = 3  # microbatches that stand for all: from the second on there are gradients beside the activations
SECONDS = 0.8  # measure for at least this long
ROUNDS, PATIENCE = 3, 5.0  # at least so many rounds, unless they take more seconds
SAFE = {"base_lr": 1e-9, "min_lr": 0.0, "compile": False}  # no nan from random ids, no minutes of compiling


@dataclass(frozen=True)
class Probe:
    """The cost of a step with B: seconds and tokens a second of the whole step, the process's peak in bytes.

    `trouble` says why B cannot be chosen, even if it was measured.
    """

    B: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak: int | None = None
    trouble: str = ""


def measure_probe(cfg: RunCfg) -> Probe:
    """Measure a step of `cfg`; an error becomes the probe's trouble."""
    device, train = resolve_device(cfg.device), cfg.train.model_copy(update=SAFE)
    prepare_cpu(device)
    if fault := find_known_fault(device, cfg):
        return Probe(train.B, trouble=fault[0])
    try:
        seconds = estimate_step(make_step(device, cfg.model_copy(update={"train": train})), train, device)
    except (NielsError, RuntimeError, MemoryError) as error:
        return Probe(train.B, trouble=explain(error))
    return Probe(train.B, seconds, train.effective_batch * cfg.model.T / seconds, memory_in_use(device))


def estimate_step(step: Callable[[TrainCfgSchema], object], train: TrainCfgSchema, device: torch.device) -> float:
    """Return the seconds of a whole step, estimated from steps of one and of a few microbatches."""
    few = min(train.accum_steps, FEW)
    cfgs = [train.model_copy(update={"accum_steps": count}) for count in (1, few)]
    step(cfgs[0])  # to warm up
    rounds: list[list[float]] = []
    while (spent := sum(map(sum, rounds))) < SECONDS or (len(rounds) < ROUNDS and spent < PATIENCE):
        rounds.append([time_steps(partial(step, one), 1, device)[0].wall for one in cfgs])
    first, last = (min(seconds[at] for seconds in rounds) for at in (0, 1))  # other work only adds time
    microbatch = (last - first) / (few - 1) if last > first and few > 1 else last / few
    return last + (train.accum_steps - few) * microbatch


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(asdict(measure_probe(RunCfg.model_validate_json(sys.stdin.read())))))
