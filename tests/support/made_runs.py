"""Run folders made by hand, in every state that a sweep leaves one in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.artifacts.job_record import Job, Status, write_job
from train.report.rows import GIB, Row

MODEL = {"V": 512, "T": 64, "dropout": 0.0}
TRAIN = {"seed": 1337, "B": 4, "accum_steps": 2, "base_lr": 1e-3, "activation_checkpointing": False}


def settings(**changed: Any) -> dict[str, Any]:
    """Settings of a phase; `changed` belong to train, a None takes one away."""
    train = {key: value for key, value in (TRAIN | changed).items() if value is not None}
    return {"model": MODEL, "data": {"kind": "synthetic", "cache_dir": "cache"}, "train": train, "init_from": None}


def write_metrics(
    phase: Path, losses: Sequence[float], speed: float = 1000.0, memory: int = GIB, bits: float = 0.5
) -> None:
    """A train event and an evaluation every thousand tokens; a nat a target is so many `bits` per byte."""
    phase.mkdir(parents=True, exist_ok=True)
    lines = []
    for step, loss in enumerate(losses, 1):
        at = {"step": step, "loss": loss, "tokens": step * 1000}
        lines.append({"event": "train", **at, "tokens_per_second": speed, "memory": memory})
        lines.append({"event": "val", **at, "bits_per_byte": loss * bits})
    (phase / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_result(folder: Path, loss: float | None, phases: Sequence[str] = ("pretrain",), *,
                 tokenizer: str | None = None, **changed: Any) -> None:  # fmt: skip
    """A result for each phase."""
    entries = [
        {
            "phase": phase, "step": 4, "val_loss": loss, "best_val_loss": loss, "bits_per_byte": loss and loss / 2,
            "unigram_loss": 6.0, "unigram_bits_per_byte": 3.0, "tokens": 4000, "seconds": 4.0,
            "checkpoint": f"{phase}/best.pt", "settings": settings(**changed), "tokenizer": tokenizer,
        }
        for phase in phases
    ]  # fmt: skip
    (folder / "result.json").write_text(json.dumps({"name": folder.name, "phases": entries}), encoding="utf-8")


def made_job(folder: Path, status: Status = "finished", **changed: Any) -> Path:
    """A job's record alone."""
    job: dict[str, Any] = {"number": 0, "overrides": ("train.B=4",), "config_hash": "0", "seconds": 90.0}
    job |= {"command": "python scripts/train.py train.B=4", "status": status}
    write_job(folder, Job(**job | changed))
    return folder


def made_run(folder: Path, losses: Sequence[float] = (4.0, 3.0), *, speed: float = 1000.0, memory: int = GIB,
             job: dict[str, Any] | None = None, **changed: Any) -> Path:  # fmt: skip
    """A finished job with its metrics and its result."""
    made_job(folder, **job or {})
    write_metrics(folder / "pretrain", losses, speed, memory)
    write_result(folder, losses[-1], **changed)
    return folder


def row(name: str, loss: float | None = 3.0, speed: float | None = 1000.0, memory: float | None = 1.0,
        **rest: Any) -> Row:  # fmt: skip
    """A finished row that comes from no folder."""
    given: dict[str, Any] = {"status": "finished", "val_loss": loss, "bits_per_byte": loss}
    return Row(name, name, **given | {"tokens_per_second": speed, "peak_memory_gib": memory} | rest)
