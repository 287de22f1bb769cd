"""Run a job of a sweep in this process, as Hydra's other launchers do, and record it."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from niels_gpt.errors import Interrupted, NielsError, TimeIsUp, first_line
from train.artifacts.job_record import Status, write_job
from train.artifacts.run_folder import unlock_folder
from train.cli.signals import PREEMPTION
from train.config.schema import RunCfg
from train.report.rows import read_objective
from train.report.write import is_recent, rewrite_report
from train.sweep.jobs import PlannedJob

log = logging.getLogger("niels_gpt")


def run_job(job: PlannedJob, carry_out: Callable[[list[RunCfg]], Any]) -> float | tuple[float, ...] | None:
    """Carry out a job, record how it ended, and return the values to minimise; None if the job failed.

    Interrupted if a signal came, which is meant for the whole sweep.
    """
    record, started = job.read_record(), time.monotonic()
    record = replace(record, status="running", attempts=record.attempts + 1)
    write_job(job.folder, record)

    def write_end(status: Status, exit_code: int = 0, reason: str = "") -> None:
        seconds = round(record.seconds + time.monotonic() - started, 1)
        write_job(job.folder, replace(record, status=status, exit_code=exit_code, reason=reason, seconds=seconds))
        if status == "interrupted" or not is_recent(job.sweep):  # else the end of the sweep writes it
            rewrite_report(job.sweep, job.plan[0].memory_budget_gb)

    try:
        carry_out(job.plan)
        write_end("finished")
    except Interrupted as error:
        write_end("interrupted", error.exit_code, str(error))
        listener = signal.getsignal(error.signum)
        if error.signum in PREEMPTION and callable(listener):  # submitit's queues the job again and exits
            listener(error.signum, None)
        raise
    except TimeIsUp as error:  # of this job alone
        write_end("interrupted", error.exit_code, str(error))
    except (Exception, SystemExit) as error:
        log.error("error: %s", error)
        log.error("the job ended", exc_info=error)  # for its log file
        kind = "" if isinstance(error, NielsError) else f"{type(error).__name__}: "
        write_end("failed", getattr(error, "exit_code", 1), kind + first_line(error))
    finally:
        unlock_folder(str(job.folder))  # this process may live on, and another try the job again
    return read_objective(job.folder, job.objective)
