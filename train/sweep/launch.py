"""Run the jobs of a sweep in processes, a few at a time, and record the status of each."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from niels_gpt.errors import Interrupted, NielsError
from niels_gpt.printable import printable
from train.artifacts.job_record import Job, is_complete, read_job, write_job
from train.artifacts.results import completed
from train.artifacts.run_folder import is_held
from train.cli.signals import StopRequest, stop_on_signals
from train.cli.subprocesses import GRACE, parent_pipe
from train.report.findings import labels
from train.report.rows import Row
from train.report.tables import one_line
from train.report.write import rewrite
from train.sweep.child import Child, Ended
from train.sweep.jobs import PlannedJob

POLL = 0.05  # seconds
log = logging.getLogger("niels_gpt")


class SweepRun:
    """The jobs of one sweep and the processes that carry them out."""

    def __init__(
        self, script: Path, sweep: Path, jobs: Sequence[PlannedJob], n_jobs: int, timeout_minutes: float | None
    ) -> None:
        """Plan to run `script` once a job, `n_jobs` at a time, each for `timeout_minutes` at most."""
        self.script, self.sweep, self.jobs = script, sweep, jobs
        self.n_jobs, self.timeout_minutes = min(n_jobs, len(jobs)), timeout_minutes
        self._running: dict[Child, PlannedJob] = {}
        self._told = False
        self._began = time.monotonic()

    def carry_out(self) -> None:
        """Run what is not complete and record it; the report is rewritten after each job.

        Raises:
            Interrupted: a signal came; the running jobs were stopped resumably, the rest was not started.
        """
        todo = deque(job for job in self.jobs if not self._skipped(job))
        with stop_on_signals(again=self._kill) as stop, parent_pipe() as (reading, variables):
            try:
                while self._running or (todo and not stop()):
                    while todo and not stop() and len(self._running) < self.n_jobs and self._free(todo[0]):
                        self._start(todo.popleft(), reading, variables)
                    self._pass_on(stop)
                    self._reap()
                    time.sleep(POLL)
            finally:  # nobody runs on if something unforeseen ends the sweep
                self._kill()
        if stop.signum is not None:
            raise Interrupted(
                f"the sweep was stopped; {len(todo)} of {len(self.jobs)} jobs were not started",
                "the same command goes on from there",
                stop.signum,
            )

    def _skipped(self, job: PlannedJob) -> bool:
        """Return whether nothing is left to do for a job; what is known of it stays until the next attempt."""
        record = job.record()
        complete = is_complete(read_job(job.folder), job.config_hash, job.plan)
        if complete:
            log.info("%s: complete, skipped", job.folder.name)
        elif record.status in ("running", "finished"):  # it was not: the process or its result has gone
            record = replace(record, status="interrupted", exit_code=None, reason="ended with its sweep")
        write_job(job.folder, record)
        return complete

    def _free(self, job: PlannedJob) -> bool:
        """Return whether a job's folder is free; a sweep that was killed may have left its job saving."""
        return not is_held(job.folder) or time.monotonic() - self._began > GRACE

    def _start(self, job: PlannedJob, reading: int, variables: Mapping[str, str]) -> None:
        record = job.record()
        attempt = replace(record, status="running", exit_code=None, reason="", attempts=record.attempts + 1)
        write_job(job.folder, attempt)
        log.info("job %d of %d: %s", self.jobs.index(job) + 1, len(self.jobs), " ".join(job.overrides))
        child = Child(
            [sys.executable, str(self.script), *job.arguments],
            job.folder,
            dict(variables) | threads(self.n_jobs),
            [reading],
            minutes=self.timeout_minutes,
            quiet=self.n_jobs > 1,
        )
        self._running[child] = job

    def _pass_on(self, stop: StopRequest) -> None:
        """Tell the running jobs, once, that a signal came."""
        if stop() and not self._told:
            self._told = True
            for child in self._running:
                child.stop()

    def _kill(self) -> None:
        for child in self._running:
            child.kill()

    def _reap(self) -> None:
        for child, job in list(self._running.items()):
            if ended := child.ended():
                del self._running[child]
                self._record(job, ended)

    def _record(self, job: PlannedJob, ended: Ended) -> None:
        """Record how a job ended and rewrite the report; a full disk must not end the jobs that follow."""
        try:
            write_job(job.folder, record_of(job, ended))
            rows = rewrite(self.sweep, job.plan[0].memory_budget_gb)
        except Exception as error:
            log.warning("warning: the report cannot be written: %s", error)
            return
        for row in rows:
            if row.folder == printable(str(job.folder)):
                log.info("%s", one_line(row, rows))


class JobsFailed(NielsError):
    """A sweep has been carried out, but not all of its jobs have finished."""


def require_all_finished(sweep: Path, rows: Sequence[Row]) -> None:
    """Refuse to call a sweep done while jobs of it have failed.

    Raises:
        JobsFailed: a line for each, with the reason.
    """
    failed = [row for row in rows if row.status != "finished"]
    if failed:
        lines = [f"{len(failed)} of {len(rows)} jobs have not finished; {sweep}/sweep.html shows all"]
        lines += [f"{labels(rows)[row]}: {row.status}: {row.reason}" for row in failed]
        raise JobsFailed("\n".join(lines), "the same command tries them again, and skips what has finished")


def record_of(job: PlannedJob, ended: Ended) -> Job:
    """Return the record of a job whose process has ended; an end without a result is a failure."""
    status, reason = ended.status, ended.reason
    if status == "finished" and not all(completed(cfg) for cfg in job.plan):
        status, reason = "failed", "it ended without a result, and without a word"
    record = read_job(job.folder) or job.record()
    return replace(
        record,
        status=status,
        exit_code=ended.exit_code,
        reason=reason,
        seconds=round(record.seconds + ended.seconds, 1),
    )


def threads(n_jobs: int) -> dict[str, str]:
    """Return the variables that give each of `n_jobs` simultaneous jobs its share of the cores."""
    if n_jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // n_jobs))}
