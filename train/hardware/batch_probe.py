"""Measure one B in a fresh process: read a RunCfg from stdin, print a Probe as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from niels_gpt.device import memory_in_use, resolve_device
from niels_gpt.errors import NielsError
from train.cli.subprocesses import end_with_parent
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.cpu import prepare_cpu
from train.hardware.preflight import known_fault, torch_version
from train.hardware.step_cost import reason, stepper

FEW = 3  # microbatches that stand for all: from the second on there are gradients beside the activations
SECONDS = 0.8  # of measuring, at least
ROUNDS, PATIENCE = 3, 5.0  # measurements, at least, unless they take more seconds
STILL = {"base_lr": 1e-9, "min_lr": 0.0, "compile": False}  # no nan from random ids, no minutes of compiling


@dataclass(frozen=True)
class Probe:
    """What a step takes with B: seconds and tokens a second of the whole step, the process's peak in bytes.

    `trouble` says why B is not to be taken; there may be measurements all the same.
    """

    B: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak: int | None = None
    trouble: str = ""


def probed(cfg: RunCfg) -> Probe:
    """Measure a step of `cfg`; what goes wrong is part of the answer."""
    device, train = resolve_device(cfg.device), cfg.train.model_copy(update=STILL)
    prepare_cpu(device)
    if device.type == "mps" and (fault := known_fault(cfg, torch_version())):
        return Probe(train.B, trouble=fault[0])
    try:
        seconds = step_seconds(stepper(device, cfg.model_copy(update={"train": train})), train)
    except (NielsError, RuntimeError, MemoryError) as error:
        return Probe(train.B, trouble=reason(error))
    return Probe(train.B, seconds, train.effective_batch * cfg.model.T / seconds, memory_in_use(device))


def step_seconds(step: Callable[[TrainCfgSchema], float], train: TrainCfgSchema) -> float:
    """Return the seconds of a whole step, worked out from steps of one and of a few microbatches."""
    few = min(train.accum_steps, FEW)
    shorter, longer = (train.model_copy(update={"accum_steps": count}) for count in (1, few))
    step(shorter)  # to warm up
    rounds = [(step(shorter), step(longer))]
    while (spent := sum(map(sum, rounds))) < SECONDS or (len(rounds) < ROUNDS and spent < PATIENCE):
        rounds.append((step(shorter), step(longer)))
    first, last = min(one for one, _ in rounds), min(more for _, more in rounds)  # other work only adds time
    microbatch = (last - first) / (few - 1) if last > first and few > 1 else last / few
    return last + (train.accum_steps - few) * microbatch


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(asdict(probed(RunCfg.model_validate_json(sys.stdin.read())))))
