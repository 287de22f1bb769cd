"""Find the fastest B that fits in memory for batch=auto, and remember it in the run folder."""

import json
import logging
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import memory_budget, resolve_device
from niels_gpt.errors import NielsError, OutOfMemory
from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.results import finished
from train.cli.output import mib, table
from train.cli.subprocesses import run_module
from train.config.schema import RunCfg, possible_B
from train.hardware.batch_probe import Probe
from train.hardware.out_of_memory import ways_out
from train.hardware.preflight import preflight
from train.hardware.step_cost import NO_ROOM, theory

MEMORY = "batch.json"
LARGEST = 1 << 20  # bytes of it
# settings that the cost of a step depends on
COSTLY = {"amp", "amp_dtype", "loss_scaling", "activation_checkpointing", "optim", "compile"}
MOST = 9  # candidates; each takes seconds
TIMEOUT = 600  # seconds for one candidate
QUICK = 12.0  # seconds of searching, after which what is not faster is as good as slower
CLEARLY = 1.1  # so many times slower
log = logging.getLogger("niels_gpt")


def settled(plan: list[RunCfg]) -> list[RunCfg]:
    """Return the plan with B chosen where batch=auto leaves it open; the sequences in a step stay as many.

    Raises:
        OutOfMemory: not even the smallest B fits.
    """
    return [_settled(cfg) if cfg.batch == "auto" and not finished(cfg) else cfg for cfg in plan]


def _settled(cfg: RunCfg) -> RunCfg:
    """Return `cfg` with the B that its run folder remembers, or else with the fastest."""
    choices = _read(cfg)
    asked = _asked(cfg)
    for choice in choices:
        if choice["asked"] == asked:
            chosen = with_B(cfg, choice["B"])
            log.info("%s: batch=auto: %s, as %s remembers", cfg.phase, _split(chosen), MEMORY)
            return chosen
    tried, B = _measured(cfg)
    choices.append({"asked": asked, "B": B, "tried": [asdict(probe) for probe in tried]})
    write_json(Path(cfg.dir) / MEMORY, {"choices": choices})
    return with_B(cfg, B)


def _measured(cfg: RunCfg) -> tuple[list[Probe], int]:
    """Search, show what was tried, and return it with the B to take."""
    device = resolve_device(cfg.device)
    preflight(device, with_B(cfg, candidates(cfg.train.effective_batch)[0]))
    budget = _budget(cfg, device)
    log.info(
        "%s: batch=auto: trying how to split the %d sequences of a step; memory budget %s MiB",
        cfg.phase, cfg.train.effective_batch, mib(budget),
    )  # fmt: skip
    tried = search(cfg, budget)
    best = fastest(tried)
    log.info(probe_table(cfg, tried, best))
    if best is None:
        raise _nothing_fits(cfg, tried[0], budget)
    log.info("%s: batch=auto: %s is the fastest that fits", cfg.phase, _split(with_B(cfg, best.B)))
    return tried, best.B


def _budget(cfg: RunCfg, device: torch.device) -> int:
    """Return the bytes that the run may take: as asked for, or what the device has."""
    return memory_budget(device) if cfg.memory_budget_gb is None else int(cfg.memory_budget_gb * 2**30)


def _split(cfg: RunCfg) -> str:
    """Return how a step is split, as it could be written on the command line."""
    return f"train.B={cfg.train.B} train.accum_steps={cfg.train.accum_steps}"


def probe_table(cfg: RunCfg, tried: list[Probe], best: Probe | None) -> str:
    """Return what was tried, a line for each B."""
    rows: list[tuple[str, ...]] = [("B", "accum_steps", "tokens/s", "peak MiB", "")]
    for probe in tried:
        split = (str(probe.B), str(cfg.train.effective_batch // probe.B))
        if probe.trouble:
            rows.append((*split, probe.trouble))
        else:
            mark = "taken" if probe is best else ""
            rows.append((*split, f"{probe.tokens_per_second:,.0f}", mib(probe.peak), mark))
    return table(rows).rstrip()


def _nothing_fits(cfg: RunCfg, smallest: Probe, budget: int) -> NielsError:
    """Return what to say when there is no B to take."""
    if not smallest.trouble.startswith(NO_ROOM):
        way_out = "batch=fixed with train.B=N train.accum_steps=M measures nothing"
        return NielsError(f"batch=auto: train.B={smallest.B} could not be measured: {smallest.trouble}", way_out)
    asked = "" if cfg.memory_budget_gb is None else f" (memory_budget_gb={cfg.memory_budget_gb})"
    return OutOfMemory(
        f"batch=auto: not even train.B={smallest.B} fits {mib(budget)} MiB{asked} with model.T={cfg.model.T}: "
        f"{smallest.trouble}",
        f"{ways_out(with_B(cfg, 1))}; a larger memory_budget_gb",
    )


def _asked(cfg: RunCfg) -> dict[str, Any]:
    """Return what the choice of B is an answer to."""
    return {
        "device": resolve_device(cfg.device).type,
        "threads": torch.get_num_threads(),
        "effective_batch": cfg.train.effective_batch,
        "memory_budget_gb": cfg.memory_budget_gb,
        "model": cfg.model.model_dump(mode="json"),
        "train": cfg.train.model_dump(mode="json", include=COSTLY),
    }


def _read(cfg: RunCfg) -> list[dict[str, Any]]:
    """Return what the run folder remembers; a damaged file counts as nothing, with a warning."""
    path = Path(cfg.dir) / MEMORY
    if not path.exists():
        return []
    try:
        choices: list[dict[str, Any]] = read_json(path, LARGEST)["choices"]
        for choice in choices:
            if choice["B"] not in candidates(choice["asked"]["effective_batch"]):
                raise ValueError(f"B={choice['B']} is none that could have been chosen")
    except (ValueError, TypeError, KeyError) as error:
        log.warning("warning: %s cannot be used (%s); B is measured anew", path, error)
        return []
    return choices


def candidates(effective_batch: int) -> list[int]:
    """Return divisors of the effective batch, ascending: not all, where they are many or close together."""
    possible, apart = possible_B(effective_batch), 2
    while len(kept := _thinned(possible, apart)) > MOST:
        apart *= 2
    return kept


def _thinned(numbers: list[int], apart: int) -> list[int]:
    """Return the first number, and always the next one that is at least `apart` times the one before."""
    kept = numbers[:1]
    for number in numbers:
        if number >= apart * kept[-1]:
            kept.append(number)
    return kept


def with_B(cfg: RunCfg, B: int) -> RunCfg:
    """Return `cfg` with microbatches of B and as many sequences in a step as before."""
    return cfg.model_copy(update={"train": cfg.train.split(cfg.train.effective_batch, B)})


def search(cfg: RunCfg, budget: int) -> list[Probe]:
    """Return what was tried; it ends where B does not fit `budget` bytes, or larger ones only get slower."""
    tried: list[Probe] = []
    started = time.monotonic()
    for B in candidates(cfg.train.effective_batch):
        tried.append(_tried(with_B(cfg, B), tried, budget))
        times = 1.0 if time.monotonic() - started > QUICK else CLEARLY
        if tried[-1].trouble or (_slower(tried, times) and _slower(_best_again(cfg, tried), times)):
            break
    return tried


def fastest(tried: list[Probe]) -> Probe | None:
    """Return the fastest of those that fit, None where there are none."""
    return max((probe for probe in tried if not probe.trouble), key=_speed, default=None)


def _tried(cfg: RunCfg, before: list[Probe], budget: int) -> Probe:
    """Measure a candidate unless those before it say that it will not fit."""
    if (expected := _expected_peak(cfg, before)) > budget:
        return Probe(cfg.train.B, trouble=f"would take about {mib(round(expected))} MiB: not tried")
    probe = _measured_in_child(cfg)
    if probe.peak and probe.peak > budget:
        return replace(probe, trouble=f"{NO_ROOM}: takes {mib(probe.peak)} MiB")
    return probe


def _expected_peak(cfg: RunCfg, before: list[Probe]) -> float:
    """Return the bytes that memory will grow to: along the line through the last two, after one as in theory."""
    if not before:
        return 0
    last, B = before[-1], cfg.train.B
    if len(before) == 1:
        device = resolve_device(cfg.device)
        more = theory(cfg.model, cfg.train, device) - theory(cfg.model, with_B(cfg, last.B).train, device)
        return (last.peak or 0) + more
    slope = max(0, (last.peak or 0) - (before[-2].peak or 0)) / (last.B - before[-2].B)
    return (last.peak or 0) + slope * (B - last.B)


def _slower(tried: list[Probe], times: float) -> bool:
    """Return whether the last two are so many times slower than the fastest."""
    fastest_speed = max(map(_speed, tried))
    return len(tried) > 2 and all(_speed(probe) * times < fastest_speed for probe in tried[-2:])


def _best_again(cfg: RunCfg, tried: list[Probe]) -> list[Probe]:
    """Measure the fastest again, in place: the others may be slower only because the machine has become busy."""
    best = max(range(len(tried)), key=lambda at: _speed(tried[at]))
    again = _measured_in_child(with_B(cfg, tried[best].B))
    tried[best] = tried[best] if again.trouble else again
    return tried


def _speed(probe: Probe) -> float:
    return probe.tokens_per_second or 0.0


def _measured_in_child(cfg: RunCfg) -> Probe:
    """Measure in a child process."""
    threads = torch.get_num_threads()
    try:
        done = run_module("train.hardware.batch_probe", cfg.model_dump_json(), threads=threads, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Probe(cfg.train.B, trouble=f"no answer in {TIMEOUT} seconds")
    if done.returncode < 0:  # Linux ends the process that takes the most
        return Probe(cfg.train.B, trouble=f"{NO_ROOM}: the process was ended by signal {-done.returncode}")
    if done.returncode:
        return Probe(cfg.train.B, trouble=(done.stderr.strip().splitlines() or ["it failed without a word"])[-1])
    return Probe(**json.loads(done.stdout.splitlines()[-1]))
