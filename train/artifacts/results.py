"""Read and write result.json: the result of each phase and the settings behind it."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from niels_gpt.config import DataCfg
from niels_gpt.errors import CheckpointError
from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from niels_gpt.weights.paths import list_checkpoints, parse_step, step_files
from train.config.schema import PhaseName, RunCfg
from train.config.suggest import format_value

RESULT = "result.json"
NO_EFFECT = {"log_every", "ckpt_every", "keep_last", "max_minutes", "cache_dir", "verify"}  # on what is learned
MAY_CHANGE = NO_EFFECT | {"total_steps", "patience"}  # under a complete phase
log = logging.getLogger("niels_gpt")


@dataclass(frozen=True)
class PhaseResult:
    """The result of a phase. Losses are nats per target on the validation sequences.

    Seconds are those of the last process. `checkpoint` is the best one's path within the run folder.
    `settings` are those of the last process that decide the outcome; `changes` lists earlier ones, with the steps
    at which they changed. `evaluations_since_best` is given where train.patience stopped the phase. Older results
    lack the fields that have defaults.
    """

    phase: PhaseName
    step: int
    val_loss: float | None
    best_val_loss: float | None
    bits_per_byte: float | None
    unigram_loss: float
    unigram_bits_per_byte: float
    tokens: int
    seconds: float
    checkpoint: str
    settings: dict[str, Any]
    tokenizer: str | None = None  # its hash
    changes: list[dict[str, Any]] = field(default_factory=list)
    evaluations_since_best: int | None = None


RESULTS = TypeAdapter(list[PhaseResult])


def select_outcome_settings(cfg: RunCfg) -> dict[str, Any]:
    """Return the settings that decide the outcome of a phase, as plain JSON."""
    settings = cfg.model_dump(mode="json", include={"model", "data", "train", "init_from"})
    if cfg.batch == "auto":  # the split is not a setting then: a finished run is recognized whatever it was
        del settings["train"]["B"], settings["train"]["accum_steps"]
        settings["train"]["effective_batch"] = cfg.train.effective_batch
    return settings | {"resume": None if cfg.resume in ("auto", "never") else cfg.resume}


def read_results(folder: Path) -> dict[PhaseName, PhaseResult]:
    """Return the results of a run folder by phase; a damaged file counts as missing, with a warning."""
    path = folder / RESULT
    if not path.exists():
        return {}
    try:
        entries = RESULTS.validate_python(read_json(path)["phases"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("warning: %s is damaged (%s) and was ignored", path, error)
        return {}
    return {entry.phase: entry for entry in entries}


def write_results(cfg: RunCfg, results: list[PhaseResult]) -> None:
    """Replace result.json."""
    path = Path(cfg.dir) / RESULT
    write_json(path, {"name": cfg.name, "phases": [asdict(result) for result in results]})


def find_reusable_result(cfg: RunCfg) -> PhaseResult | None:
    """Return the result of an earlier process if it is complete, unless resume=never."""
    return None if cfg.resume == "never" else find_complete_result(cfg)


def find_complete_result(cfg: RunCfg) -> PhaseResult | None:
    """Return the result of a phase if it took all the steps, or had all the patience, of the settings."""
    result = read_results(Path(cfg.dir)).get(cfg.phase)
    if result is None:
        return None
    waited, patience = result.evaluations_since_best, cfg.train.patience
    if result.step < cfg.train.total_steps and (waited is None or patience is None or waited < patience):
        return None
    return result if (Path(cfg.dir) / result.checkpoint).exists() else None


def has_begun(plan: Iterable[RunCfg]) -> bool:
    """Return whether any of the phases has saved a step."""
    return any(list_checkpoints(cfg.out) for cfg in plan)


def require_unchanged(plan: list[RunCfg]) -> None:
    """Refuse other settings for a complete phase, and more steps for a phase that a later one has built on.

    CheckpointError has a line per setting that differs.
    """
    for at, cfg in enumerate(plan):
        if result := find_reusable_result(cfg):
            then = _add_new_settings(result.settings)
            if changes := list(_list_changes(then, select_outcome_settings(cfg))):
                raise CheckpointError(
                    "\n".join(f"{cfg.out} was completed with {change}" for change in changes),
                    "use another name=... for a new run",
                )
        elif later := [other.phase for other in plan[at + 1 :] if has_begun([other])]:
            asked, saved = (
                cfg.train.total_steps,
                max(filter(None, map(parse_step, step_files(cfg.out))), default=0),
            )
            if saved < asked:  # else only its result is missing
                raise CheckpointError(
                    f"{cfg.out} has {saved} of {asked} steps, but {later[0]} has already started from its weights",
                    f"use phase={later[0]} alone, the original total_steps and patience, or another name=...",
                )


def _add_new_settings(then: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a result with those of its data that it is too old to have, at their defaults."""
    with suppress(ValidationError):
        data = DataCfg.model_validate_json(json.dumps(then.get("data")))
        return then | {"data": data.model_dump(mode="json")}
    return then


def _list_changes(then: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(then.get(key), dict):
            yield from _list_changes(then[key], value, f"{path}{key}.")
        elif key not in MAY_CHANGE and then.get(key) != value:
            yield f"{path}{key}={format_value(then.get(key))}, not {format_value(value)}"
