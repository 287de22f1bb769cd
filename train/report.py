"""What a phase tells: metrics.jsonl for machines, progress for people, curves.png at the end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from niels_gpt.device import memory_in_use
from niels_gpt.writing import beside
from train.disk import tolerated
from train.evaluate import Yardstick
from train.metrics import METRICS, append, keep_until, read_metrics, settle

CURVES = "curves.png"
log = logging.getLogger("niels_gpt")


class Report:
    """The voice of one phase. Its numbers go to metrics.jsonl, one object per event, each step once."""

    def __init__(
        self,
        out: Path,
        total_steps: int,
        step: int,
        tokens_per_step: int,
        device: torch.device,
        measure: Yardstick,
    ) -> None:
        """Go on after `step`; what the file says of later steps belongs to a run that was cut off."""
        self.out, self.total_steps, self.tokens_per_step = out, total_steps, tokens_per_step
        self.device, self.measure = device, measure
        self._since, self._since_step = time.monotonic(), step
        self._progress: Progress | None = None
        with tolerated(out / METRICS):
            keep_until(out / METRICS, step)
        evaluated = [event["step"] for event in read_metrics(out / METRICS) if event["event"] == "val"]
        self.evaluated_at = evaluated[-1] if evaluated else 0

    def train(self, step: int, loss: float, lr: float, grad_norm: float) -> None:
        """Tell of one optimizer step: its mean loss a target, in nats."""
        speed = self._tokens_per_second(step)
        self._write(
            event="train",
            step=step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens=step * self.tokens_per_step,
            tokens_per_second=round(speed),
            memory=memory_in_use(self.device),
        )
        if self._progress:
            task = self._progress.task_ids[0]
            self._progress.update(task, facts=f"loss {loss:.3f}  lr {lr:.2e}  {speed:,.0f} tokens/s")
        else:
            left = (self.total_steps - step) * self.tokens_per_step / speed if speed else 0.0
            width = len(str(self.total_steps))
            log.info(
                f"step {step:{width}}/{self.total_steps}  loss {loss:.4f}  lr {lr:.2e}  "
                f"grad_norm {grad_norm:.2f}  {speed:,.0f} tokens/s  {left:.0f} s left"
            )

    def val(self, step: int, loss: float) -> None:
        """Tell of an evaluation: loss in nats a target, bits a byte, and a unigram model's."""
        self.evaluated_at = step
        bits = self.measure.bits_per_byte(loss)
        self._write(event="val", step=step, loss=loss, bits_per_byte=bits, tokens=step * self.tokens_per_step)
        unigram = self.measure.unigram_loss
        log.info(
            f"step {step}/{self.total_steps}  validation loss {loss:.4f} (unigram {unigram:.4f})  "
            f"bits per byte {bits:.3f} (unigram {self.measure.bits_per_byte(unigram):.3f})"
        )

    def settle(self) -> None:
        """See to it that a power cut takes nothing back of what was told."""
        with tolerated(self.out / METRICS):
            settle(self.out / METRICS)

    def advance(self, step: int) -> None:
        """Move the bar, where there is one."""
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=step)

    @contextmanager
    def live(self, title: str) -> Iterator[None]:
        """Show a progress bar on a terminal while a phase learns."""
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

    def curves(self) -> None:
        """Draw the losses of the phase so far into curves.png."""
        from matplotlib.figure import Figure  # here: importing it takes as long as ten steps

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        events = list(read_metrics(self.out / METRICS))
        for kind, style in (("train", "-"), ("val", "o-")):
            points = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
            axes.plot(*zip(*points, strict=True), style, label=kind, markersize=4) if points else None
        axes.axhline(self.measure.unigram_loss, color="grey", linestyle=":", label="unigram, val")
        axes.set(xlabel="step", ylabel="loss (nats a target)", title=self.out.name)
        axes.legend()
        with tolerated(self.out / CURVES), beside(self.out / CURVES) as part:
            figure.savefig(part, dpi=120, format="png")

    def _tokens_per_second(self, step: int) -> float:
        """Return the speed since the last call, by a clock that never goes back."""
        now = time.monotonic()
        seconds, steps = now - self._since, step - self._since_step
        self._since, self._since_step = now, step
        return steps * self.tokens_per_step / seconds if seconds > 0 else 0.0

    def _write(self, **event: Any) -> None:
        with tolerated(self.out / METRICS):
            append(self.out / METRICS, event)
