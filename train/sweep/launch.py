"""Run the jobs of a sweep in processes, a few at a time, and record the status of each."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from niels_gpt.errors import Interrupted
from train.artifacts.job_record import is_complete, read_job, write_job
from train.artifacts.results import find_complete_result
from train.artifacts.run_folder import is_locked
from train.cli.signals import stop_on_signals
from train.cli.subprocesses import GRACE, parent_pipe
from train.report.rows import read_row
from train.report.tables import describe_row
from train.report.write import is_recent, rewrite_report
from train.sweep.child import JobProcess
from train.sweep.jobs import PLANNED, PlannedJob

log = logging.getLogger("niels_gpt")


@dataclass
class SweepRun:
    """The jobs of one sweep and the processes that carry them out."""

    sweep: Path
    jobs: Sequence[PlannedJob]
    n_jobs: int  # at a time
    timeout_minutes: float | None
    first: int  # index of the first job in its sweep
    trials: int | None  # of a search
    _running: dict[JobProcess, PlannedJob] = field(default_factory=dict)
    _report_is_stale: bool = False
    _began: float = field(default_factory=time.monotonic)

    def carry_out(self) -> None:
        """Run the jobs that are not complete, record each, and keep the report up to date.

        Interrupted if a signal came; the running jobs were stopped resumably, the rest was not started.
        """
        todo = deque(job for job in self.jobs if not self._skip_if_complete(job))
        with stop_on_signals(again=self._kill_all) as stop, parent_pipe() as (reading, variables):
            try:
                while self._running or (todo and not stop()):
                    while todo and not stop() and len(self._running) < self.n_jobs and self._is_free(todo[0]):
                        self._start(todo.popleft(), reading, variables)
                    for child in self._running if stop() else ():
                        child.stop()
                    self._collect_ended()
                    if self._report_is_stale and not is_recent(self.sweep):
                        self._rewrite_report()
                    time.sleep(0.05)
            finally:  # no job outlives its sweep
                self._kill_all()
        # Hydra does not call on_multirun_end after a signal, nor when all trials of a search have failed.
        if stop.signum is not None or all(job.read_record().status != "finished" for job in self.jobs):
            self._rewrite_report()
        if stop.signum is not None:
            raise Interrupted(
                f"the sweep was stopped; {len(todo)} of {len(self.jobs)} jobs were not started",
                "the same command continues it",
                stop.signum,
            )

    def _skip_if_complete(self, job: PlannedJob) -> bool:
        """Return whether a job is complete; otherwise correct a record that says so, or that it runs."""
        record = job.read_record()
        complete = is_complete(read_job(job.folder), job.config_hash, job.plan)
        if complete:
            log.info("%s: complete, skipped", job.folder.name)
        elif record.status in ("running", "finished"):  # its process or its result has gone
            record = replace(record, status="interrupted", exit_code=None, reason="ended with its sweep")
        write_job(job.folder, record)
        return complete

    def _is_free(self, job: PlannedJob) -> bool:
        """Return whether a job's folder is free; a killed sweep may have left its job saving."""
        return not is_locked(job.folder) or time.monotonic() - self._began > GRACE

    def _start(self, job: PlannedJob, reading: int, variables: Mapping[str, str]) -> None:
        record = job.read_record()
        record = replace(record, status="running", exit_code=None, reason="", attempts=record.attempts + 1)
        write_job(job.folder, record)
        kind, total = ("trial", self.trials) if self.trials else ("job", len(PLANNED))
        log.info("%s %d of %d: %s", kind, self.first + self.jobs.index(job) + 1, total, job.folder.name)
        if (n_jobs := min(self.n_jobs, len(self.jobs))) > 1 and "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
            variables = {**variables, "OMP_NUM_THREADS": str(max(1, cores // n_jobs))}
        command = [sys.executable, "-P", "-m", "niels_gpt", "train", *job.arguments]
        child = JobProcess(command, job.folder, record, variables, reading, self.timeout_minutes, n_jobs > 1)
        self._running[child] = job

    def _kill_all(self) -> None:
        for child in self._running:
            child.kill()

    def _collect_ended(self) -> None:
        for child, job in list(self._running.items()):
            if end := child.poll():
                del self._running[child]
                self._report_is_stale = True
                if end.status == "finished" and not all(map(find_complete_result, job.plan)):
                    end = replace(end, status="failed", reason="exited with code 0 but wrote no result.json")
                try:
                    write_job(job.folder, end)
                except Exception as error:  # a full disk must not end the jobs that follow
                    log.warning("warning: %s cannot be recorded: %s", job.folder, error)
                log.info("%s", describe_row(read_row(job.folder)))

    def _rewrite_report(self) -> None:
        self._report_is_stale = False
        try:
            rewrite_report(self.sweep, self.jobs[0].plan[0].memory_budget_gb)
        except Exception as error:
            log.warning("warning: the report cannot be written: %s", error)
