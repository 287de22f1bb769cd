"""Read and write result.json: the result of each phase and the settings behind it."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from niels_gpt.errors import CheckpointError
from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.paths import any_saved, step_files, step_of
from train.config.schema import PhaseName, RunCfg

RESULT = "result.json"
LARGEST = 1 << 20  # bytes of it
WITHOUT_EFFECT = {  # on what was learned so far
    "total_steps",
    "log_every",
    "ckpt_every",
    "keep_last",
    "max_minutes",
    "cache_dir",
}
log = logging.getLogger("niels_gpt")


@dataclass(frozen=True)
class PhaseResult:
    """What a phase reached.

    Losses in nats a target on the validation sequences; seconds of this process, by the clock and of its CPUs.

    `checkpoint` is the best one's path within the run folder; `settings` are those that decide the outcome, of the
    last process; `changes` says which were others before, with the step at which each changed.
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
    cpu_seconds: float | None = None  # older results do not say
    tokenizer: str | None = None  # its hash; older results do not say
    changes: list[dict[str, Any]] = field(default_factory=list)


RESULTS = TypeAdapter(list[PhaseResult])


def settings_of(cfg: RunCfg) -> dict[str, Any]:
    """Return what decides the outcome of a phase, as plain JSON."""
    settings = cfg.model_dump(mode="json", include={"model", "data", "train", "init_from"})
    if cfg.batch == "auto":  # then the split is not a setting: a finished run is known again whatever it was
        del settings["train"]["B"], settings["train"]["accum_steps"]
        settings["train"]["effective_batch"] = cfg.train.effective_batch
    return settings | {"resume": None if cfg.resume in ("auto", "never") else cfg.resume}


def read_results(folder: Path) -> dict[PhaseName, PhaseResult]:
    """Return the results of a run folder by phase; an unreadable file counts as none, with a warning."""
    path = folder / RESULT
    if not path.exists():
        return {}
    try:
        entries = RESULTS.validate_python(read_json(path, LARGEST)["phases"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("warning: %s cannot be read (%s); it counts as none", path, error)
        return {}
    return {entry.phase: entry for entry in entries}


def write_results(cfg: RunCfg, results: list[PhaseResult]) -> None:
    """Rewrite result.json, whole or not at all."""
    path = Path(cfg.dir) / RESULT
    write_json(path, {"name": cfg.name, "phases": [asdict(result) for result in results]})


def finished(cfg: RunCfg) -> PhaseResult | None:
    """Return what an earlier process reached, if it counts: it took all the steps that are asked for now."""
    return None if cfg.resume == "never" else completed(cfg)


def completed(cfg: RunCfg) -> PhaseResult | None:
    """Return what the phase reached, if it took all the steps that are asked for."""
    result = read_results(Path(cfg.dir)).get(cfg.phase)
    if result is None or result.step < cfg.train.total_steps:
        return None
    return result if (Path(cfg.dir) / result.checkpoint).exists() else None


def has_begun(plan: Iterable[RunCfg]) -> bool:
    """Return whether any of the phases has saved a step."""
    return any(any_saved(cfg.out) for cfg in plan)


def require_unchanged(plan: list[RunCfg]) -> None:
    """Refuse settings that a finished phase cannot follow, and more steps under a phase that others built on.

    Raises:
        CheckpointError: a line per setting that differs.
    """
    for at, cfg in enumerate(plan):
        if result := finished(cfg):
            if changes := list(_changes(result.settings, settings_of(cfg))):
                raise CheckpointError(
                    "\n".join(f"{cfg.out} is complete, with other settings: {change}" for change in changes),
                    "use another name=... for another run",
                )
        elif later := [other.phase for other in plan[at + 1 :] if has_begun([other])]:
            require_all_steps(cfg, later[0])


def require_all_steps(cfg: RunCfg, later: PhaseName) -> None:
    """Refuse to go on with a phase under one that has begun `later`; all its steps may be there without a result.

    Raises:
        CheckpointError: how many steps there are.
    """
    asked, saved = cfg.train.total_steps, max(filter(None, map(step_of, step_files(cfg.out))), default=0)
    if saved < asked:
        raise CheckpointError(
            f"{cfg.out} has {saved} of {asked} steps, but {later} has already begun from its weights",
            f"go on with phase={later} alone, ask for what it was, or use another name=...",
        )


def _changes(then: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(then.get(key), dict):
            yield from _changes(then[key], value, f"{path}{key}.")
        elif key not in WITHOUT_EFFECT and then.get(key) != value:
            yield f"{path}{key}={then.get(key)}, not {value}"
