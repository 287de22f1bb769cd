"""Log a phase: metrics.jsonl, lines or a progress bar, and curves.png."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from niels_gpt.device import measure_memory
from niels_gpt.errors import first_line
from niels_gpt.storage import replace_atomically
from train.artifacts.checkpointing import TrainState
from train.artifacts.disk import tolerate_disk_errors
from train.artifacts.metrics import METRICS, append_event, read_metrics, sync_metrics, truncate_metrics
from train.cli.console import FILE_ONLY
from train.config.schema import RunCfg
from train.loop.evaluate import UnigramBaseline, ValLoss
from train.loop.loggers.forwarding import Loggers

CURVES = "curves.png"
DRAW_SHARE = 0.05  # of the time, at most, for drawing at evaluations
log = logging.getLogger("niels_gpt")


class RunLogger:
    """Log the numbers of a phase to metrics.jsonl, one object per event, and to the console.

    Enter `progress` to show a progress bar instead of the steps' lines, if the console is a terminal; the lines
    then go to the log file alone.
    """

    def __init__(
        self, out: Path, total_steps: int, state: TrainState, baseline: UnigramBaseline, cfg: RunCfg | None = None
    ) -> None:
        """Continue after the step of `state`; later events in the file belong to a process that was killed.

        The loggers of `cfg` are told of all events that a checkpoint covers.
        """
        self.observers: list[Callable[[dict[str, Any]], None]] = []  # of events to come
        self.out, self.total_steps, self.baseline = out, total_steps, baseline
        self._last_time, self._last_step, self._last_sequences = time.monotonic(), state.step, state.sequences
        self._draw_from: float | None = None  # when an evaluation may draw: after the first line
        columns = (
            "{task.description}",
            BarColumn(),
            "{task.completed}/{task.total}",
            "{task.fields[facts]}",
            TimeRemainingColumn(),
            "left",
        )
        console = get_console()
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.progress.add_task(out.name, total=total_steps, completed=state.step, facts="")
        with tolerate_disk_errors(out / METRICS):
            truncate_metrics(out / METRICS, state.step, evaluated=state.evaluated)
        self._loggers = Loggers(cfg) if cfg and cfg.logger else None
        self.forward(state.step)

    def log_step(self, state: TrainState, loss: float, lr: float, grad_norm: float) -> None:
        """Log an optimizer step; `loss` is the mean since the last line, in nats per target."""
        T, now = state.model.cfg.T, time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        speed = (state.sequences - self._last_sequences) * T / seconds
        left = (self.total_steps - state.step) * seconds / max(1, state.step - self._last_step)
        self._last_time, self._last_step, self._last_sequences = now, state.step, state.sequences
        machine = {"tokens_per_second": round(speed), "memory": measure_memory(state.model.device)}
        self._append("train", state, loss=loss, lr=lr, grad_norm=grad_norm, **machine)
        self._draw_from = now if self._draw_from is None else self._draw_from
        width = len(str(self.total_steps))
        log.info(
            f"step {state.step:{width}}/{self.total_steps}  loss {loss:.4f}  lr {lr:.2e}  "
            f"grad_norm {grad_norm:.2f}  {speed:,.0f} tokens/s  {left:.0f} s left",
            extra={FILE_ONLY: not self.progress.disable},
        )
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
        due = self._draw_from is not None and time.monotonic() >= self._draw_from
        if due and state.step < self.total_steps:  # the end is drawn anyway
            self.draw_curves()

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk."""
        with tolerate_disk_errors(self.out / METRICS):
            sync_metrics(self.out / METRICS)

    def forward(self, step: int) -> None:
        """Hand the events up to `step`, which a checkpoint covers, to the loggers."""
        if self._loggers:
            self._loggers.forward(step)

    def close(self) -> None:
        """Draw the curves a last time, and let the loggers finish."""
        self.draw_curves()
        if self._loggers:
            self._loggers.close()

    def advance(self, step: int) -> None:
        """Move the progress bar, if there is one."""
        self.progress.update(self._task, completed=step)

    def draw_curves(self) -> None:
        """Draw the losses and the learning rate so far into curves.png, if there are any."""
        started = time.monotonic()
        with tolerate_disk_errors(self.out / CURVES):
            events = [event for event in read_metrics(self.out / METRICS) if isinstance(event.get("loss"), float)]
            if events:
                self._draw(events)
        now = time.monotonic()  # reading a long file takes time too
        self._draw_from = now + (now - started) / DRAW_SHARE

    def _draw(self, events: Sequence[dict[str, Any]]) -> None:
        from matplotlib.figure import Figure  # here: importing it takes as long as ten steps

        train, val = ([event for event in events if event["event"] == kind] for kind in ("train", "val"))
        steps, losses = [event["step"] for event in train], [event["loss"] for event in train]
        figure = Figure(figsize=(7, 5))  # no layout engine: one takes as long as the drawing
        figure.subplots_adjust(left=0.11, right=0.97, top=0.94, bottom=0.1, hspace=0.08)
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        upper.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="train")
        upper.plot(steps, smooth(losses), color="tab:blue", label="train, smoothed")
        upper.plot([e["step"] for e in val], [e["loss"] for e in val], "o-", color="tab:orange", label="val")
        upper.axhline(self.baseline.unigram_loss, color="grey", linestyle=":", label="unigram, val")
        upper.set(ylabel="loss (nats per target)", title=self.out.name)
        upper.legend()
        lower.plot(steps, [event.get("lr") for event in train], color="tab:green")
        lower.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        with replace_atomically(self.out / CURVES) as part:
            figure.savefig(part, dpi=120, format="png")

    def _append(self, event: str, state: TrainState, **numbers: Any) -> None:
        tokens = state.sequences * state.model.cfg.T
        line = {"event": event, "step": state.step, "tokens": tokens, "time": round(time.time(), 3), **numbers}
        with tolerate_disk_errors(self.out / METRICS):
            append_event(self.out / METRICS, line)
        for observe in [*self.observers]:
            try:
                observe(line)
            except Exception as error:  # it must not stop the run
                self.observers.remove(observe)
                log.warning("warning: an observer failed (%s); continuing without it", first_line(error))


def smooth(values: Sequence[float]) -> list[float]:
    """Return centred means over a tenth of the values; the window is shorter at the start, and cut at the end."""
    sums, half = [0.0, *accumulate(values)], len(values) // 20
    windows = ((max(0, n - half), min(len(values), n + min(n, half) + 1)) for n in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]
