"""Find the fastest B that fits in memory for batch=auto, and remember it in the run folder."""

import json
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import compute_memory_budget, resolve_device
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
TIMEOUT = 600  # seconds for one candidate
log = logging.getLogger("niels_gpt")


def choose_batch(cfg: RunCfg) -> RunCfg:
    """Return `cfg` with B chosen if batch=auto leaves it open; a step keeps its number of sequences.

    OutOfMemory if not even the smallest B fits.
    """
    if cfg.batch != "auto" or find_reusable_result(cfg):
        return cfg
    path, question, sequences = Path(cfg.dir) / CHOICES, _describe_question(cfg), cfg.train.effective_batch
    choices = _read_choices(path)
    for choice in choices:
        if choice["asked"] == question and choice["B"] in list_candidates(sequences):
            return _announce_choice(cfg, choice["B"], f"as stored in {CHOICES}")
    device = resolve_device(cfg.device)
    check_device(device, set_microbatch_size(cfg, list_candidates(sequences)[0]))
    budget = compute_memory_budget(device) if cfg.memory_budget_gb is None else int(cfg.memory_budget_gb * 2**30)
    message = "%s: batch=auto: trying splits of the %d sequences in a step; memory budget %s MiB"
    log.info(message, cfg.phase, sequences, format_mib(budget))
    tried = probe_candidates(cfg, budget)
    best = pick_fastest(tried)
    log.info(_format_probes(sequences, tried, best))
    if best is None:
        raise _explain_no_choice(cfg, tried[0], budget)
    write_json(path, {"choices": [*choices, {"asked": question, "B": best.B}]})
    return _announce_choice(cfg, best.B, "is the fastest that fits")


def _announce_choice(cfg: RunCfg, B: int, reason: str) -> RunCfg:
    chosen = set_microbatch_size(cfg, B)
    log.info(f"{cfg.phase}: batch=auto: train.B={B} train.accum_steps={chosen.train.accum_steps} {reason}")
    return chosen


def _format_probes(sequences: int, tried: Sequence[Probe], best: Probe | None) -> str:
    rows: list[tuple[str, ...]] = [("B", "accum_steps", "tokens/s", "peak MiB", "")]
    for probe in tried:
        split = str(probe.B), str(sequences // probe.B)
        numbers = f"{probe.tokens_per_second:,.0f}", format_mib(probe.peak), "chosen" if probe is best else ""
        rows.append((*split, probe.trouble) if probe.trouble else (*split, *numbers))
    return format_table(rows).rstrip()


def _explain_no_choice(cfg: RunCfg, smallest: Probe, budget: int) -> NielsError:
    if not smallest.trouble.startswith(NO_ROOM):
        way_out = "set batch=fixed train.B=N train.accum_steps=M to skip measuring"
        return NielsError(f"batch=auto: train.B={smallest.B} could not be measured: {smallest.trouble}", way_out)
    setting = "" if cfg.memory_budget_gb is None else f" (memory_budget_gb={cfg.memory_budget_gb})"
    return OutOfMemory(
        f"batch=auto: not even train.B={smallest.B} fits in {format_mib(budget)} MiB{setting} "
        f"with model.T={cfg.model.T}: {smallest.trouble}",
        f"{suggest_less_memory(set_microbatch_size(cfg, 1))}; a larger memory_budget_gb",
    )


def _describe_question(cfg: RunCfg) -> dict[str, Any]:
    """Return everything that the fastest B depends on."""
    settings = {"amp", "amp_dtype", "loss_scaling", "activation_checkpointing", "optim", "compile"}
    return {
        "device": resolve_device(cfg.device).type,
        "threads": torch.get_num_threads(),
        "effective_batch": cfg.train.effective_batch,
        "memory_budget_gb": cfg.memory_budget_gb,
        "model": cfg.model.model_dump(mode="json"),
        "train": cfg.train.model_dump(mode="json", include=settings),
    }


def _read_choices(path: Path) -> list[dict[str, Any]]:
    """Return the choices in the run folder; warn about a damaged file and ignore it."""
    try:
        choices = read_json(path, LARGEST)["choices"] if path.exists() else []
        return [{"asked": choice["asked"], "B": choice["B"]} for choice in choices]
    except (ValueError, TypeError, KeyError) as error:
        log.warning("warning: %s cannot be used (%s); B is measured again", path, error)
        return []


def list_candidates(effective_batch: int) -> list[int]:
    """Return divisors of the effective batch, ascending, each at least twice the one before."""
    kept: list[int] = []
    for B in list_microbatch_sizes(effective_batch):
        if not kept or B >= 2 * kept[-1]:
            kept.append(B)
    return kept


def set_microbatch_size(cfg: RunCfg, B: int) -> RunCfg:
    """Return `cfg` with microbatches of B and as many sequences in a step as before."""
    return cfg.model_copy(update={"train": cfg.train.split(cfg.train.effective_batch, B)})


def probe_candidates(cfg: RunCfg, budget: int) -> list[Probe]:
    """Measure candidates until one does not fit `budget` bytes or larger ones only get slower."""
    tried: list[Probe] = []
    for B in list_candidates(cfg.train.effective_batch):
        tried.append(_probe_within(set_microbatch_size(cfg, B), tried, budget))
        if tried[-1].trouble:
            break
        best = pick_fastest(tried)
        if best and best not in tried[-2:]:
            again = _probe_in_child(set_microbatch_size(cfg, best.B))  # the machine may have become busy
            tried[tried.index(best)] = best if again.trouble else again
            if pick_fastest(tried) not in tried[-2:]:
                break
    return tried


def pick_fastest(tried: Sequence[Probe]) -> Probe | None:
    """Return the fastest probe that fits, or None."""
    fitting = [probe for probe in tried if not probe.trouble]
    return max(fitting, key=lambda probe: probe.tokens_per_second, default=None)


def _probe_within(cfg: RunCfg, before: Sequence[Probe], budget: int) -> Probe:
    """Measure a candidate unless the ones before show that it will not fit."""
    if (expected := _extrapolate_peak(cfg, before)) > budget:
        return Probe(cfg.train.B, trouble=f"would take about {format_mib(round(expected))} MiB: not tried")
    probe = _probe_in_child(cfg)
    if probe.peak > budget:
        return replace(probe, trouble=f"{NO_ROOM}: takes {format_mib(probe.peak)} MiB")
    return probe


def _extrapolate_peak(cfg: RunCfg, before: Sequence[Probe]) -> float:
    """Return the expected bytes: along the line through the last two probes, after one probe by theory."""
    if not before:
        return 0
    last, B = before[-1], cfg.train.B
    if len(before) == 1:
        pair, device = (set_microbatch_size(cfg, last.B), cfg), resolve_device(cfg.device)
        small, large = (predict_peak(one.model, one.train, device) for one in pair)
        return last.peak + large - small
    slope = max(0, last.peak - before[-2].peak) / (last.B - before[-2].B)
    return last.peak + slope * (B - last.B)


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
