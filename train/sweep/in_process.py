"""Run a job of a sweep in this process, as Hydra's other launchers do, and record it."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from niels_gpt.errors import Interrupted, NielsError, TimeIsUp
from train.artifacts.job_record import Status, write_job
from train.artifacts.run_folder import release
from train.cli.signals import forward_preemption
from train.config.schema import RunCfg
from train.report.rows import reached
from train.report.write import rewrite
from train.sweep.jobs import PlannedJob

log = logging.getLogger("niels_gpt")


def recorded(job: PlannedJob, carry_out: Callable[[list[RunCfg]], Any]) -> float | tuple[float, ...] | None:
    """Carry out a job, record how it ended, return what the sweeper minimises; None if the job failed.

    Raises:
        Interrupted: a signal came; it is meant for the whole sweep.
    """
    record, started = job.record(), time.monotonic()
    record = replace(record, status="running", attempts=record.attempts + 1)
    write_job(job.folder, record)

    def ended(status: Status, exit_code: int = 0, reason: str = "") -> None:
        seconds = round(record.seconds + time.monotonic() - started, 1)
        write_job(job.folder, replace(record, status=status, exit_code=exit_code, reason=reason, seconds=seconds))
        rewrite(job.sweep, job.plan[0].memory_budget_gb)

    try:
        carry_out(job.plan)
        ended("finished")
    except Interrupted as error:
        ended("interrupted", error.exit_code, str(error))
        forward_preemption(error.signum)
        raise
    except TimeIsUp as error:  # of this job alone
        ended("interrupted", error.exit_code, str(error))
    except Exception as error:
        log.error("error: %s", error)
        log.error("the job ended", exc_info=error)  # for its log file
        ended("failed", getattr(error, "exit_code", 1), said(error))
    except SystemExit as error:
        ended("failed", error.code if isinstance(error.code, int) else 1, f"exit({error.code!r}) was called")
    finally:
        release(str(job.folder))  # the process may live on, and the job be tried again in another
    return reached(job.folder, job.objective)


def said(error: Exception) -> str:
    """Return an error in a line."""
    text = str(error) if isinstance(error, NielsError) else f"{type(error).__name__}: {error}"
    return (text.splitlines() or [""])[0]
