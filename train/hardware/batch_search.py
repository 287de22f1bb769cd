"""Find the fastest B that fits in memory for batch=auto, and remember it in the run folder."""

import json
import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import memory_budget, resolve_device
from niels_gpt.errors import NielsError, OutOfMemory
from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.results import find_reusable_result
from train.cli.output import format_mib, format_table
from train.cli.subprocesses import run_module
from train.config.schema import RunCfg, list_microbatch_sizes
from train.hardware.batch_probe import Probe
from train.hardware.out_of_memory import suggest_less_memory
from train.hardware.preflight import check_device
from train.hardware.step_cost import NO_ROOM, predict_peak

CHOICES = "batch.json"
LARGEST = 1 << 20  # bytes of it
# settings that the cost of a step depends on
COSTLY = {"amp", "amp_dtype", "loss_scaling", "activation_checkpointing", "optim", "compile"}
MOST = 9  # candidates; each takes seconds
TIMEOUT = 600  # seconds for one candidate
QUICK = 12.0  # after so many seconds of search, a candidate that is not faster ends it
CLEARLY = 1.1  # before, one that is so many times slower
log = logging.getLogger("niels_gpt")


def choose_batch(cfg: RunCfg) -> RunCfg:
    """Return `cfg` with B chosen if batch=auto leaves it open; a step keeps its number of sequences.

    Raises:
        OutOfMemory: not even the smallest B fits.
    """
    if cfg.batch != "auto" or find_reusable_result(cfg):
        return cfg
    choices, asked = _read_choices(cfg), _describe_question(cfg)
    for choice in choices:
        if choice["asked"] == asked:
            chosen = set_microbatch_size(cfg, choice["B"])
            log.info("%s: batch=auto: %s, as %s remembers", cfg.phase, _describe_split(chosen), CHOICES)
            return chosen
    tried, chosen = _search_and_report(cfg)
    choices.append({"asked": asked, "B": chosen.train.B, "tried": [asdict(probe) for probe in tried]})
    write_json(Path(cfg.dir) / CHOICES, {"choices": choices})
    return chosen


def _search_and_report(cfg: RunCfg) -> tuple[list[Probe], RunCfg]:
    device, sequences = resolve_device(cfg.device), cfg.train.effective_batch
    check_device(device, set_microbatch_size(cfg, list_candidates(sequences)[0]))
    budget = memory_budget(device) if cfg.memory_budget_gb is None else int(cfg.memory_budget_gb * 2**30)
    said = "%s: batch=auto: trying splits of the %d sequences in a step; memory budget %s MiB"
    log.info(said, cfg.phase, sequences, format_mib(budget))
    tried = probe_candidates(cfg, budget)
    best = pick_fastest(tried)
    log.info(_probe_table(sequences, tried, best))
    if best is None:
        raise _explain_no_choice(cfg, tried[0], budget)
    chosen = set_microbatch_size(cfg, best.B)
    log.info("%s: batch=auto: %s is the fastest that fits", cfg.phase, _describe_split(chosen))
    return tried, chosen


def _describe_split(cfg: RunCfg) -> str:
    return f"train.B={cfg.train.B} train.accum_steps={cfg.train.accum_steps}"


def _probe_table(sequences: int, tried: Sequence[Probe], best: Probe | None) -> str:
    rows: list[tuple[str, ...]] = [("B", "accum_steps", "tokens/s", "peak MiB", "")]
    for probe in tried:
        cells: tuple[str, ...] = (probe.trouble,)
        if not probe.trouble:
            cells = f"{probe.tokens_per_second:,.0f}", format_mib(probe.peak), "taken" if probe is best else ""
        rows.append((str(probe.B), str(sequences // probe.B), *cells))
    return format_table(rows).rstrip()


def _explain_no_choice(cfg: RunCfg, smallest: Probe, budget: int) -> NielsError:
    if not smallest.trouble.startswith(NO_ROOM):
        way_out = "set batch=fixed train.B=N train.accum_steps=M to skip measuring"
        return NielsError(f"batch=auto: train.B={smallest.B} could not be measured: {smallest.trouble}", way_out)
    asked = "" if cfg.memory_budget_gb is None else f" (memory_budget_gb={cfg.memory_budget_gb})"
    return OutOfMemory(
        f"batch=auto: not even train.B={smallest.B} fits {format_mib(budget)} MiB{asked} "
        f"with model.T={cfg.model.T}: {smallest.trouble}",
        f"{suggest_less_memory(set_microbatch_size(cfg, 1))}; a larger memory_budget_gb",
    )


def _describe_question(cfg: RunCfg) -> dict[str, Any]:
    """Return everything that the fastest B depends on."""
    return {
        "device": resolve_device(cfg.device).type,
        "threads": torch.get_num_threads(),
        "effective_batch": cfg.train.effective_batch,
        "memory_budget_gb": cfg.memory_budget_gb,
        "model": cfg.model.model_dump(mode="json"),
        "train": cfg.train.model_dump(mode="json", include=COSTLY),
    }


def _read_choices(cfg: RunCfg) -> list[dict[str, Any]]:
    """Return the choices in the run folder; warn about a damaged file and ignore it."""
    path = Path(cfg.dir) / CHOICES
    if not path.exists():
        return []
    try:
        choices: list[dict[str, Any]] = read_json(path, LARGEST)["choices"]
        for choice in choices:
            if choice["B"] not in list_candidates(choice["asked"]["effective_batch"]):
                raise ValueError(f"B={choice['B']} is not a candidate")
    except (ValueError, TypeError, KeyError) as error:
        log.warning("warning: %s cannot be used (%s); B is measured again", path, error)
        return []
    return choices


def list_candidates(effective_batch: int) -> list[int]:
    """Return divisors of the effective batch, ascending; leave some out if they are many or close together."""
    possible, apart = list_microbatch_sizes(effective_batch), 2
    while True:
        kept = possible[:1]
        for number in possible:
            if number >= apart * kept[-1]:
                kept.append(number)
        if len(kept) <= MOST:
            return kept
        apart *= 2


def set_microbatch_size(cfg: RunCfg, B: int) -> RunCfg:
    """Return `cfg` with microbatches of B and as many sequences in a step as before."""
    return cfg.model_copy(update={"train": cfg.train.split(cfg.train.effective_batch, B)})


def probe_candidates(cfg: RunCfg, budget: int) -> list[Probe]:
    """Measure candidates until one does not fit `budget` bytes or larger ones only get slower."""
    tried: list[Probe] = []
    started = time.monotonic()
    for B in list_candidates(cfg.train.effective_batch):
        tried.append(_probe_within(set_microbatch_size(cfg, B), tried, budget))
        times = 1.0 if time.monotonic() - started > QUICK else CLEARLY
        if tried[-1].trouble:
            break
        if _is_slowing(tried, times):
            best = max(range(len(tried)), key=lambda at: _get_speed(tried[at]))
            again = _probe_in_child(set_microbatch_size(cfg, tried[best].B))  # the machine may have become busy
            tried[best] = tried[best] if again.trouble else again
            if _is_slowing(tried, times):
                break
    return tried


def pick_fastest(tried: Sequence[Probe]) -> Probe | None:
    """Return the fastest probe that fits, or None."""
    return max((probe for probe in tried if not probe.trouble), key=_get_speed, default=None)


def _get_speed(probe: Probe) -> float:
    return probe.tokens_per_second or 0.0


def _is_slowing(tried: Sequence[Probe], times: float) -> bool:
    """Return whether the last two are so many times slower than the fastest."""
    best = max(map(_get_speed, tried))
    return len(tried) > 2 and all(_get_speed(probe) * times < best for probe in tried[-2:])


def _probe_within(cfg: RunCfg, before: Sequence[Probe], budget: int) -> Probe:
    """Measure a candidate unless the ones before show that it will not fit."""
    if (expected := _extrapolate_peak(cfg, before)) > budget:
        return Probe(cfg.train.B, trouble=f"would take about {format_mib(round(expected))} MiB: not tried")
    probe = _probe_in_child(cfg)
    if probe.peak and probe.peak > budget:
        return replace(probe, trouble=f"{NO_ROOM}: takes {format_mib(probe.peak)} MiB")
    return probe


def _extrapolate_peak(cfg: RunCfg, before: Sequence[Probe]) -> float:
    """Return the expected bytes: along the line through the last two probes, after one probe by theory."""
    if not before:
        return 0
    last, B = before[-1], cfg.train.B
    if len(before) == 1:
        device = resolve_device(cfg.device)
        small, large = (
            predict_peak(cfg.model, one.train, device) for one in (set_microbatch_size(cfg, last.B), cfg)
        )
        return (last.peak or 0) + large - small
    slope = max(0, (last.peak or 0) - (before[-2].peak or 0)) / (last.B - before[-2].B)
    return (last.peak or 0) + slope * (B - last.B)


def _probe_in_child(cfg: RunCfg) -> Probe:
    threads = torch.get_num_threads()
    try:
        done = run_module("train.hardware.batch_probe", cfg.model_dump_json(), threads=threads, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Probe(cfg.train.B, trouble=f"no answer in {TIMEOUT} seconds")
    if done.returncode < 0:  # Linux kills the process that takes the most
        return Probe(cfg.train.B, trouble=f"{NO_ROOM}: the process was ended by signal {-done.returncode}")
    if done.returncode:
        last_words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Probe(cfg.train.B, trouble=last_words[-1])
    return Probe(**json.loads(done.stdout.splitlines()[-1]))
