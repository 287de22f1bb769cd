"""Measure one B in a fresh process: read a RunCfg from stdin, print a Probe as JSON."""

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial

import torch

from niels_gpt.device import measure_memory, resolve_device
from niels_gpt.errors import NielsError
from train.cli.subprocesses import end_with_parent
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.preflight import refuse_known_faults
from train.hardware.step_cost import Step, describe_trouble, make_step, time_steps

FEW = 3  # microbatches that stand for all: from the second on there are gradients beside the activations
SECONDS = 2.0  # measure for at least this long


@dataclass(frozen=True)
class Probe:
    """The speed of a whole step with B, and the process's peak in bytes.

    `trouble` says why B cannot be chosen, even if it was measured.
    """

    B: int
    tokens_per_second: float = 0.0
    peak: int = 0
    trouble: str = ""


def measure_probe(cfg: RunCfg) -> Probe:
    """Measure a step of `cfg`; an error becomes the probe's trouble."""
    device, train = resolve_device(cfg.device), cfg.train.model_copy(update={"compile": False})  # it takes minutes
    try:
        refuse_known_faults(device, cfg)
        seconds = estimate_seconds(make_step(device, cfg.model, train, isolate=cfg.isolate), train, device)
    except (NielsError, RuntimeError, MemoryError) as error:
        return Probe(train.B, trouble=describe_trouble(error))
    return Probe(train.B, train.effective_batch * cfg.model.T / seconds, measure_memory(device))


def estimate_seconds(step: Step, train: TrainCfgSchema, device: torch.device) -> float:
    """Return the seconds of a whole step, estimated from steps of one and of a few microbatches."""
    few = min(train.accum_steps, FEW)
    cfgs = [train.model_copy(update={"accum_steps": count}) for count in (1, few)]
    step(cfgs[0])  # to warm up
    rounds: list[list[float]] = []
    while sum(map(sum, rounds)) < SECONDS:
        rounds.append([time_steps(partial(step, one), 1, device)[0].wall for one in cfgs])
    first, last = (min(seconds[at] for seconds in rounds) for at in (0, 1))  # other work only adds time
    microbatch = (last - first) / (few - 1) if last > first and few > 1 else last / few
    return last + (train.accum_steps - few) * microbatch


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(asdict(measure_probe(RunCfg.model_validate_json(sys.stdin.read())))))
