"""batch=auto: B is chosen by measuring, and remembered in the run folder, so that a resumed run has the same."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from niels_gpt.device import memory_budget, resolve_device
from niels_gpt.errors import NielsError, OutOfMemory
from niels_gpt.plain import read_json
from train.atomic import write_json
from train.batch_probe import Probe
from train.batch_search import candidates, fastest, search, with_B
from train.memory import ways_out
from train.preflight import preflight
from train.result import finished
from train.schema import RunCfg
from train.step_cost import NO_ROOM
from train.text_table import mib, table

MEMORY = "batch.json"
LARGEST = 1 << 20  # bytes of it
# settings that the cost of a step depends on
COSTLY = {"amp", "amp_dtype", "loss_scaling", "activation_checkpointing", "optim", "compile"}
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
