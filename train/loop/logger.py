"""Log a phase: metrics.jsonl, a progress bar, and curves.png at the end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from niels_gpt.device import measure_memory
from niels_gpt.storage import replace_atomically
from train.artifacts.checkpointing import TrainState
from train.artifacts.disk import tolerate_disk_errors
from train.artifacts.metrics import METRICS, append_event, read_metrics, sync_metrics, truncate_metrics
from train.loop.evaluate import UnigramBaseline, ValLoss

CURVES = "curves.png"
log = logging.getLogger("niels_gpt")


class RunLogger:
    """Log the numbers of a phase to metrics.jsonl, one object per event, and to the console."""

    def __init__(self, out: Path, total_steps: int, state: TrainState, baseline: UnigramBaseline) -> None:
        """Continue after the step of `state`; later events in the file belong to a process that was killed."""
        self.out, self.total_steps, self.baseline = out, total_steps, baseline
        self.device, self.T = state.model.device, state.model.cfg.T
        self._since, self._since_step, self._since_tokens = time.monotonic(), state.step, self._tokens(state)
        self._progress: Progress | None = None
        with tolerate_disk_errors(out / METRICS):
            truncate_metrics(out / METRICS, state.step, evaluated=state.evaluated)

    def log_step(self, state: TrainState, loss: float, lr: float, grad_norm: float) -> None:
        """Log an optimizer step; `loss` is the mean per target, in nats."""
        speed, left = self._speed_and_seconds_left(state)
        numbers = {"step": state.step, "loss": loss, "lr": lr, "grad_norm": grad_norm}
        machine = {"tokens_per_second": round(speed), "memory": measure_memory(self.device)}
        self._write(event="train", **numbers, tokens=self._tokens(state), **machine)
        if self._progress:
            task = self._progress.task_ids[0]
            self._progress.update(task, facts=f"loss {loss:.3f}  lr {lr:.2e}  {speed:,.0f} tokens/s")
        else:
            width = len(str(self.total_steps))
            log.info(
                f"step {state.step:{width}}/{self.total_steps}  loss {loss:.4f}  lr {lr:.2e}  "
                f"grad_norm {grad_norm:.2f}  {speed:,.0f} tokens/s  {left:.0f} s left"
            )

    def log_evaluation(self, state: TrainState, loss: ValLoss) -> None:
        """Log an evaluation in nats per target and bits per byte, beside the unigram model's."""
        bits = self.baseline.bits_per_byte(loss.mean)
        several = {"by_source": loss.by_source} if len(loss.by_source) > 1 else {}
        losses = {"loss": loss.mean, "bits_per_byte": bits}
        self._write(event="val", step=state.step, **losses, tokens=self._tokens(state), **several)
        unigram = self.baseline.unigram_loss
        parts = ", ".join(f"{name} {part:.4f}" for name, part in loss.by_source.items())
        log.info(
            f"step {state.step}/{self.total_steps}  validation loss {loss.mean:.4f} (unigram {unigram:.4f})  "
            f"bits per byte {bits:.3f} (unigram {self.baseline.bits_per_byte(unigram):.3f})"
            + (f"  by source: {parts}" if several else "")
        )

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk."""
        with tolerate_disk_errors(self.out / METRICS):
            sync_metrics(self.out / METRICS)

    def advance(self, step: int) -> None:
        """Move the progress bar, if there is one."""
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=step)

    @contextmanager
    def show_progress(self, title: str) -> Iterator[None]:
        """Show a progress bar while a phase trains, if the console is a terminal."""
        if not get_console().is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=get_console(), transient=True) as self._progress:
            self._progress.add_task(title, total=self.total_steps, completed=self._since_step, facts="")
            yield
        self._progress = None

    def draw_curves(self) -> None:
        """Draw the losses so far into curves.png."""
        from matplotlib.figure import Figure  # here: importing it takes as long as ten steps

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        events = list(read_metrics(self.out / METRICS))
        for kind, style in (("train", "-"), ("val", "o-")):
            points = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
            axes.plot(*zip(*points, strict=True), style, label=kind, markersize=4) if points else None
        axes.axhline(self.baseline.unigram_loss, color="grey", linestyle=":", label="unigram, val")
        axes.set(xlabel="step", ylabel="loss (nats per target)", title=self.out.name)
        axes.legend()
        with tolerate_disk_errors(self.out / CURVES), replace_atomically(self.out / CURVES) as part:
            figure.savefig(part, dpi=120, format="png")

    def _tokens(self, state: TrainState) -> int:
        """Return the tokens trained on so far."""
        return state.sequences * self.T

    def _speed_and_seconds_left(self, state: TrainState) -> tuple[float, float]:
        """Return the tokens per second since the last call, and the seconds to the end at that speed."""
        now, tokens = time.monotonic(), self._tokens(state)
        seconds = max(now - self._since, 1e-9)
        speed = (tokens - self._since_tokens) / seconds
        left = (self.total_steps - state.step) * seconds / max(1, state.step - self._since_step)
        self._since, self._since_step, self._since_tokens = now, state.step, tokens
        return speed, left

    def _write(self, **event: Any) -> None:
        with tolerate_disk_errors(self.out / METRICS):
            append_event(self.out / METRICS, event)
