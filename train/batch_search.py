"""Searches the fastest B that fits: candidates in ascending order, each measured in a process of its own."""

import json
import subprocess
import time
from dataclasses import replace

import torch

from niels_gpt.device import resolve_device
from train.ask import ask
from train.batch_probe import Probe
from train.schema import RunCfg, possible_B
from train.step_cost import NO_ROOM, theory
from train.text_table import mib

MOST = 9  # candidates; each takes seconds
TIMEOUT = 600  # seconds for one candidate
QUICK = 12.0  # seconds of searching, after which what is not faster is as good as slower
CLEARLY = 1.1  # so many times slower


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
        done = ask("train.batch_probe", cfg.model_dump_json(), threads=threads, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Probe(cfg.train.B, trouble=f"no answer in {TIMEOUT} seconds")
    if done.returncode < 0:  # Linux ends the process that takes the most
        return Probe(cfg.train.B, trouble=f"{NO_ROOM}: the process was ended by signal {-done.returncode}")
    if done.returncode:
        return Probe(cfg.train.B, trouble=(done.stderr.strip().splitlines() or ["it failed without a word"])[-1])
    return Probe(**json.loads(done.stdout.splitlines()[-1]))
