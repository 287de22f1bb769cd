"""Read run folders as rows: the settings, status and results of each run."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line
from niels_gpt.untrusted import read_text
from train.artifacts.job_record import JOB, Job, Status, read_job
from train.artifacts.metrics import METRICS
from train.artifacts.results import RESULT, PhaseResult, read_results
from train.artifacts.run_folder import is_locked
from train.config.schema import PhaseName
from train.config.suggest import name_train_command
from train.report.curves import Curve, read_curve

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
GIB = 2**30
Settings = dict[str, Any]  # by Hydra's dotted names
Results = dict[PhaseName, PhaseResult]
Curves = dict[PhaseName, Curve]


@dataclass(frozen=True, eq=False)  # by identity: two runs may be equal in everything
class Row:
    """A run in a report. Text is printable; `reason` is empty when nothing went wrong.

    The losses are the best and the last of the last phase, tokens the sum of all phases, of finished runs only;
    tokens a second are the first phase's; memory is the largest of all phases; `tokenizer` is a hash, None if the
    results do not say.
    """

    name: str
    folder: str
    status: Status | Literal["unreadable"]
    number: int = 0
    overrides: tuple[str, ...] = ()
    command: str = ""
    val_loss: float | None = None
    bits_per_byte: float | None = None
    by_source: str = ""
    tokens_per_second: float | None = None
    peak_memory_gib: float | None = None
    minutes: float | None = None
    tokens: int | None = None
    last_loss: float | None = None
    unigram_loss: float | None = None
    exit_code: int | None = None
    reason: str = ""
    tokenizer: str | None = None
    settings: Settings = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)


def is_run(folder: Path) -> bool:
    """Return whether a folder has any file of a run."""
    return any((folder / name).exists() for name in (JOB, RESULT, *(f"{phase}/{METRICS}" for phase in PHASES)))


def read_row(folder: Path) -> Row:
    """Return the row of a run folder in any state; a damaged one says so and hides no other row."""
    name = escape_line(folder.resolve().name)
    try:
        return _read_row(name, folder)
    except Exception as error:  # one broken run must not hide the others
        reason = escape_line(f"{type(error).__name__}: {error}")
        return Row(name, escape_line(str(folder)), "unreadable", reason=reason[:200])


def _read_row(name: str, folder: Path) -> Row:
    curves = {phase: curve for phase in PHASES if (curve := read_curve(folder / phase / METRICS))}
    results = read_results(folder)
    if not results and (folder / RESULT).exists():
        raise ValueError(f"{RESULT} has no known phase; the same command writes it again")
    job = _read_record(folder) or _make_record(folder, results, curves)
    last = list(results.values())[-1] if results and job.status == "finished" else None
    by_source = curves[last.phase].by_source if last and last.phase in curves else {}
    # The record may be from others: quoted again, the command can only train.
    command = shlex.join([*name_train_command().split(), *shlex.split(job.command)[2:]])
    memory = [curve.peak_memory / GIB for curve in curves.values() if curve.peak_memory]
    return Row(
        name=name,
        folder=escape_line(str(folder)),
        status=job.status,
        number=job.number,
        overrides=tuple(map(escape_line, job.overrides)),
        command=escape_line(command),
        val_loss=last.best_val_loss if last else None,
        bits_per_byte=last.bits_per_byte if last else None,
        by_source=escape_line(", ".join(f"{source} {loss:.4f}" for source, loss in by_source.items())),
        tokens_per_second=next(iter(curves.values())).tokens_per_second if curves else None,
        peak_memory_gib=max(memory, default=None),
        minutes=job.seconds / 60 or None,
        tokens=sum(result.tokens for result in results.values()) if last else None,
        last_loss=last.val_loss if last else None,
        unigram_loss=last.unigram_loss if last else None,
        exit_code=job.exit_code,
        reason=escape_line(job.reason),
        tokenizer=next((result.tokenizer for result in results.values() if result.tokenizer), None),
        settings=_list_settings(job.settings or [{"phase": phase} | r.settings for phase, r in results.items()]),
        curves=curves,
    )


def _read_record(folder: Path) -> Job | None:
    """Return the record of a sweep's job, None for a single run; it runs only while it or its sweep is locked."""
    job = read_job(folder)
    if job is None and (folder / JOB).exists():
        raise ValueError(f"{JOB} is damaged; delete it, and the same sweep writes it again")
    if job and job.status == "running" and not is_locked(folder) and not is_locked(folder.parent):
        return replace(job, status="interrupted", reason="its sweep was stopped; rerun the same command to resume")
    return job


def _make_record(folder: Path, results: Results, curves: Curves) -> Job:
    """Return a record for a single run: running while locked, finished if each phase has a result."""
    path = folder / ".hydra" / "overrides.yaml"
    overrides = tuple(yaml.safe_load(read_text(path, 1 << 16))) if path.exists() else ()
    status: Status = "finished" if results and curves.keys() <= results.keys() else "interrupted"
    if is_locked(folder):  # a phase that has not begun to train may follow
        status = "running"
    return Job(
        number=0,
        overrides=overrides,
        command=shlex.join([*name_train_command().split(), *overrides]),
        config_hash="",
        status=status,
        reason="a phase has no result" if status == "interrupted" else "",
        seconds=sum(curve.seconds for curve in curves.values()),
    )


def _list_settings(phases: Sequence[Settings]) -> Settings:
    """Return the settings by Hydra's names, and the effective batch; those of a second phase begin with `sft.`."""
    settings: Settings = {"phase": "pipeline" if len(phases) > 1 else phases[0]["phase"]} if phases else {}
    for prefix, phase in zip(("", "sft."), phases, strict=False):
        settings |= _flatten({key: value for key, value in phase.items() if key != "phase"}, prefix)
        if f"{prefix}train.effective_batch" not in settings:  # batch=auto records it instead of the split
            B, accum_steps = (settings[f"{prefix}train.{name}"] for name in ("B", "accum_steps"))
            settings[f"{prefix}train.effective_batch"] = B * accum_steps
    return settings


def _flatten(tree: Settings, prefix: str) -> Settings:
    flat: Settings = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder and in the sweeps in it."""
    children = sorted(folder.glob("[!.]*/"))
    return [path for child in children for path in (child, *sorted(child.glob("[!.]*/"))) if is_run(path)]


def read_rows(folder: Path) -> list[Row]:
    """Return a row for each run in a folder, in the order of their numbers; damaged ones come last."""
    rows = [read_row(child) for child in sorted(folder.iterdir()) if is_run(child)]
    return sorted(rows, key=lambda row: (row.status == "unreadable", row.number))


def read_runs(folders: Sequence[Path]) -> list[Row]:
    """Return the rows of run folders and of all jobs in sweep folders; each run once, under a name that differs.

    ConfigError has a line per folder that holds no run.
    """
    rows: dict[Path, Row] = {}
    missing = []
    for folder in folders:
        found = [read_row(folder)] if is_run(folder) else []
        found += read_rows(folder) if folder.is_dir() else []
        rows |= {Path(row.folder).resolve(): row for row in found}
        if not found:
            missing.append(f"{folder} holds no run" if folder.exists() else f"there is no folder {folder}")
    if missing:
        raise ConfigError("\n".join(missing), "name run folders, such as runs/default, or a sweep's folder")
    names = Counter(row.name for row in rows.values())
    return [row if names[row.name] == 1 else replace(row, name=row.folder) for row in rows.values()]


def read_objective(folder: Path, objective: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return the values that a sweeper minimises, None if the run did not finish.

    A loss is in bits per byte, since trials may differ in their tokenizers; memory is in bytes. Sweepers take None
    for a failed trial and continue, while nan ends an Optuna study.
    """
    row = read_row(folder)
    found = {"loss": row.bits_per_byte, "memory": row.peak_memory_gib and row.peak_memory_gib * GIB}
    values = [float(value) for name in objective if (value := found[name]) is not None]
    if row.status != "finished" or len(values) < len(objective):
        return None
    return values[0] if len(values) == 1 else tuple(values)
