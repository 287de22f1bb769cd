"""What a run reached: one PhaseResult a phase, kept in result.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from train.checkpointing import BEST, TrainState
from train.config import PhaseName, RunCfg
from train.evaluate import Yardstick
from train.report import METRICS, read_metrics


@dataclass(frozen=True)
class PhaseResult:
    """What a phase reached. Losses in nats a target on the validation sequences; seconds of this process.

    `checkpoint` is the best one's path within the run folder.
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


def phase_result(
    cfg: RunCfg, state: TrainState, measure: Yardstick, tokens_per_step: int, seconds: float
) -> PhaseResult:
    """Gather what the phase reached."""
    losses = [event["loss"] for event in read_metrics(cfg.out / METRICS) if event["event"] == "val"]
    best = state.best_val_loss
    return PhaseResult(
        phase=cfg.phase,
        step=state.step,
        val_loss=losses[-1] if losses else None,
        best_val_loss=best,
        bits_per_byte=None if best is None else measure.bits_per_byte(best),
        unigram_loss=measure.unigram_loss,
        unigram_bits_per_byte=measure.bits_per_byte(measure.unigram_loss),
        tokens=state.step * tokens_per_step,
        seconds=round(seconds, 1),
        checkpoint=f"{cfg.phase}/{BEST}",
    )


def finished(cfg: RunCfg) -> PhaseResult | None:
    """Return what an earlier process reached, if it took all the steps that are asked for now."""
    path = Path(cfg.dir) / "result.json"
    if cfg.resume != "auto" or not path.exists():
        return None
    for entry in json.loads(path.read_text(encoding="utf-8"))["phases"]:
        if entry["phase"] == cfg.phase and entry["step"] >= cfg.train.total_steps:
            return PhaseResult(**entry) if (Path(cfg.dir) / entry["checkpoint"]).exists() else None
    return None


def write_results(cfg: RunCfg, results: list[PhaseResult]) -> None:
    """Rewrite result.json, whole or not at all."""
    path = Path(cfg.dir) / "result.json"
    part = path.with_name(".result.json.part")
    content = {"name": cfg.name, "phases": [asdict(result) for result in results]}
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
