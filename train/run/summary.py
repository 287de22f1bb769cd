"""Log the start of a phase and the end of a run, and make the result of a phase."""

import logging
from pathlib import Path
from typing import Any

import torch

from niels_gpt.weights.paths import BEST
from train.artifacts.checkpointing import TrainState
from train.artifacts.job_record import JOB
from train.artifacts.metrics import METRICS, read_metrics
from train.artifacts.results import PhaseResult, select_outcome_settings
from train.cli.output import format_duration
from train.config.schema import RunCfg
from train.config.suggest import name_train_command
from train.loop.amp import advise_precision, uses_autocast
from train.loop.early_stopping import count_evaluations_since_best
from train.loop.evaluate import UnigramBaseline
from train.loop.model import will_compile
from train.report.diagnosis import warn_of_repetition
from train.run.data import PhaseData

log = logging.getLogger("niels_gpt")


def log_start(cfg: RunCfg, state: TrainState, data: PhaseData) -> None:
    """Log the startup line of a phase: device, precision, batch, steps; and advice on precision and data."""
    facts = {
        "device": state.model.device.type,
        "amp": "on" if uses_autocast(state.model.device, cfg.train) else "off",
        "amp_dtype": cfg.train.amp_dtype,
        "activation_checkpointing": str(cfg.train.activation_checkpointing).lower(),
        "micro_B": cfg.train.B,
        "accum_steps": cfg.train.accum_steps,
        "effective_batch": cfg.train.effective_batch,
        "T": cfg.model.T,
        "parameters": f"{state.model.parameter_count():,}",
        "steps": f"{state.step}..{cfg.train.total_steps}",
        "sequences_per_epoch": len(data.train),
        "compile": "on" if will_compile(state.model.device, cfg.train) else "off",
        "threads": torch.get_num_threads(),
    }
    log.info("%s: %s", cfg.phase, " ".join(f"{key}={value}" for key, value in facts.items()))
    if advice := advise_precision(state.model.device, cfg.train, cfg.model.T):
        log.warning("warning: %s", advice)
    epochs = data.count_epochs(cfg.train.total_steps * cfg.train.effective_batch)
    if not state.step and (advice := warn_of_repetition(epochs)):
        log.warning("warning: %s: %s", cfg.phase, advice)


def make_result(
    cfg: RunCfg, state: TrainState, baseline: UnigramBaseline, origin: dict[str, Any], seconds: float
) -> PhaseResult:
    """Return the result of a phase that took so many `seconds`; log it if train.patience stopped the phase."""
    losses = [event["loss"] for event in read_metrics(cfg.out / METRICS) if event["event"] == "val"]
    best, waited = state.best_val_loss, None
    if state.step < cfg.train.total_steps:  # stopped by train.patience
        waited = count_evaluations_since_best(state, cfg.out)
        log.info(
            "%s: stopped at step %d: no improvement in %d evaluations since step %d",
            *(cfg.phase, state.step, waited, state.best_step),
        )
    return PhaseResult(
        phase=cfg.phase,
        step=state.step,
        val_loss=losses[-1] if losses else None,
        best_val_loss=best,
        bits_per_byte=None if best is None else baseline.bits_per_byte(best),
        unigram_loss=baseline.unigram_loss,
        unigram_bits_per_byte=baseline.bits_per_byte(baseline.unigram_loss),
        tokens=state.sequences * cfg.model.T,
        seconds=round(seconds, 1),
        checkpoint=f"{cfg.phase}/{BEST}",
        settings=select_outcome_settings(cfg),
        tokenizer=origin["tokenizer"],
        changes=origin.get("changes", []),
        evaluations_since_best=waited,
    )


def log_summary(plan: list[RunCfg], results: list[PhaseResult], seconds: float) -> None:
    """Log a summary of a finished run that took so many wall `seconds` in this process."""
    last, folder = plan[-1], Path(plan[0].dir)
    log.info("finished in %s: %s", format_duration(seconds), folder)
    for cfg, result in zip(plan, results, strict=True):
        if result.best_val_loss is not None and result.bits_per_byte is not None:
            log.info(
                "  %-11s validation loss %.4f, %.3f bits per byte; curve in %s",
                *(cfg.phase, result.best_val_loss, result.bits_per_byte, cfg.out / "curves.png"),
            )
    if (folder / JOB).exists():
        return  # the sweep says what to do next
    talk = "--chat" if last.phase == "sft" else '--prompt "..."'
    stopped = results[-1].evaluations_since_best is not None
    change = "patience=null" if stopped else f"total_steps={2 * last.train.total_steps}"
    log.info("  %-11s niels_gpt sample %s %s", "talk to it", folder, talk)
    log.info("  %-11s the same command with %strain.%s", "train more", "sft." * (last.phase == "sft"), change)
    if all(source.kind == "synthetic" for source in last.data.mixture()):
        log.info(
            "  %-11s this was a smoke test on made-up text; for real text: %s name=real",
            "next",
            name_train_command(),
        )
