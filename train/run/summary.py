"""Log the end of a run: its results, where they are, how long it took, and what to do next."""

import logging
from pathlib import Path

from train.artifacts.job_record import JOB
from train.artifacts.results import PhaseResult
from train.cli.output import format_duration
from train.config.schema import RunCfg
from train.config.suggest import name_train_command

log = logging.getLogger("niels_gpt")


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
    setting = "sft.train.total_steps" if len(plan) > 1 else "train.total_steps"
    log.info("  %-11s niels_gpt sample %s %s", "talk to it", folder, talk)
    log.info("  %-11s the same command with %s=%d", "train more", setting, 2 * last.train.total_steps)
    if all(source.kind == "synthetic" for source in last.data.mixture()):
        log.info(
            "  %-11s this was a smoke test on made-up text; for real text: %s name=real",
            "next",
            name_train_command(),
        )
