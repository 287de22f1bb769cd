"""Log a phase: metrics.jsonl, a progress bar, and curves.png at the end."""

import logging
import time
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from niels_gpt.device import measure_memory
from niels_gpt.storage import replace_atomically
from train.artifacts.checkpointing import TrainState
from train.artifacts.disk import tolerate_disk_errors
from train.artifacts.metrics import METRICS, append_event, read_metrics, sync_metrics, truncate_metrics
from train.loop.baseline import UnigramBaseline
from train.loop.evaluate import ValLoss

CURVES = "curves.png"
log = logging.getLogger("niels_gpt")


class RunLogger:
    """Log the numbers of a phase to metrics.jsonl, one object per event, and to the console.

    Enter `progress` to show a progress bar instead of steps, if the console is a terminal.
    """

    def __init__(self, out: Path, total_steps: int, state: TrainState, baseline: UnigramBaseline) -> None:
        """Continue after the step of `state`; later events in the file belong to a process that was killed."""
        self.out, self.total_steps, self.baseline = out, total_steps, baseline
        self._last_time, self._last_step, self._last_sequences = time.monotonic(), state.step, state.sequences
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[facts]}",
            TimeRemainingColumn(),
        )
        console = get_console()
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.progress.add_task(out.name, total=total_steps, completed=state.step, facts="")
        with tolerate_disk_errors(out / METRICS):
            truncate_metrics(out / METRICS, state.step, evaluated=state.evaluated)

    def log_step(self, state: TrainState, loss: float, lr: float, grad_norm: float) -> None:
        """Log an optimizer step; `loss` is the mean per target, in nats."""
        T, now = state.model.cfg.T, time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        speed = (state.sequences - self._last_sequences) * T / seconds
        left = (self.total_steps - state.step) * seconds / max(1, state.step - self._last_step)
        self._last_time, self._last_step, self._last_sequences = now, state.step, state.sequences
        machine = {"tokens_per_second": round(speed), "memory": measure_memory(state.model.device)}
        self._append("train", state, loss=loss, lr=lr, grad_norm=grad_norm, **machine)
        if self.progress.disable:
            width = len(str(self.total_steps))
            log.info(
                f"step {state.step:{width}}/{self.total_steps}  loss {loss:.4f}  lr {lr:.2e}  "
                f"grad_norm {grad_norm:.2f}  {speed:,.0f} tokens/s  {left:.0f} s left"
            )
        else:
            self.progress.update(self._task, facts=f"loss {loss:.3f}  lr {lr:.2e}  {speed:,.0f} tokens/s")

    def log_evaluation(self, state: TrainState, loss: ValLoss) -> None:
        """Log an evaluation in nats per target and bits per byte, beside the unigram model's."""
        unigram, to_bits = self.baseline.unigram_loss, self.baseline.bits_per_byte
        several = {"by_source": loss.by_source} if len(loss.by_source) > 1 else {}
        self._append("val", state, loss=loss.mean, bits_per_byte=to_bits(loss.mean), **several)
        parts = ", ".join(f"{name} {part:.4f}" for name, part in loss.by_source.items())
        log.info(
            f"step {state.step}/{self.total_steps}  validation loss {loss.mean:.4f} (unigram {unigram:.4f})  "
            f"bits per byte {to_bits(loss.mean):.3f} (unigram {to_bits(unigram):.3f})"
            + (f"  by source: {parts}" if several else "")
        )

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk."""
        with tolerate_disk_errors(self.out / METRICS):
            sync_metrics(self.out / METRICS)

    def advance(self, step: int) -> None:
        """Move the progress bar, if there is one."""
        self.progress.update(self._task, completed=step)

    def draw_curves(self) -> None:
        """Draw the losses so far into curves.png."""
        from matplotlib.figure import Figure  # here: importing it takes as long as ten steps

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        events = list(read_metrics(self.out / METRICS))
        for kind, style in (("train", "-"), ("val", "o-")):
            points = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=kind, markersize=4)
        axes.axhline(self.baseline.unigram_loss, color="grey", linestyle=":", label="unigram, val")
        axes.set(xlabel="step", ylabel="loss (nats per target)", title=self.out.name)
        axes.legend()
        with tolerate_disk_errors(self.out / CURVES), replace_atomically(self.out / CURVES) as part:
            figure.savefig(part, dpi=120, format="png")

    def _append(self, event: str, state: TrainState, **numbers: Any) -> None:
        tokens = state.sequences * state.model.cfg.T
        with tolerate_disk_errors(self.out / METRICS):
            append_event(self.out / METRICS, {"event": event, "step": state.step, "tokens": tokens, **numbers})
