"""Say in words what goes wrong in a phase, from the events of its metrics.jsonl; nothing here changes a run."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any

from niels_gpt.printable import escape_line
from train.artifacts.metrics import METRICS, read_metrics
from train.cli.output import format_duration

Event = dict[str, Any]
NUMBERS = {"train": ("tokens", "loss", "grad_norm", "tokens_per_second"), "val": ("loss",)}  # that are needed
MOST_EPOCHS = 4  # up to which repeated text is nearly as good as new: Muennighoff et al. (2023), arXiv:2305.16264
RECENT, FEWEST = 100, 8  # lines that a median is taken over, at most and at least
RISE, LASTING = 1.02, 0.1  # of the validation loss, for this share of the steps
FLAT, HALF, ENOUGH = 0.98, 0.5, 100  # times the unigram model's loss; after this share of the steps, and so many
EXPLODED = 10.0  # times the median gradient norm, twice in a row
SLOW, SLOW_LINES, SLOW_SECONDS = 0.5, 3, 60.0  # times the median speed, in so many lines, for so long
log = logging.getLogger("niels_gpt")


def watch_phase(out: Path, total_steps: int, unigram_loss: float) -> Callable[[Event], None]:
    """Return an observer of the events to come in a phase's folder that logs each warning once in the phase."""
    diagnosis = Diagnosis(total_steps, unigram_loss)
    with suppress(Exception):  # an odd file must not stop the run
        for event in read_metrics(out / METRICS):  # of earlier processes, which have said their warnings
            diagnosis.add(event)

    def observe(event: Event) -> None:
        for warning in diagnosis.add(event):
            log.warning("warning: %s: %s", out.name, warning)

    return observe


def warn_of_repetition(epochs: Iterable[tuple[str, float]]) -> str | None:
    """Return a warning if sources, given with the epochs of a phase, repeat their text more than helps."""
    seen = [f"{escape_line(label)} {times:.0f} times" for label, times in epochs if times > MOST_EPOCHS]
    if not seen:
        return None
    return (
        f"the text is repeated ({', '.join(seen)}); after about {MOST_EPOCHS} times the model learns little more "
        "from it; use more text or fewer steps, or stop in time with train.patience=3"
    )


class Diagnosis:
    """The `warnings` about a phase, by kind; add its events in order. The work for each is bounded."""

    def __init__(self, total_steps: int, unigram_loss: float) -> None:
        """Begin a phase of so many steps; its losses compare with the unigram model's."""
        self.warnings: dict[str, str] = {}
        self._total_steps, self._unigram_loss = total_steps, unigram_loss
        self._lines: deque[Event] = deque(maxlen=RECENT)
        self._speeds: deque[float] = deque(maxlen=RECENT)  # of lines that are not slow
        self._slow: list[float] = []  # seconds of each slow line in a row
        self._best: tuple[int, float, float] | None = None  # step, validation loss, training loss

    def add(self, event: Event) -> list[str]:
        """Return the warnings of a kind that is new, for which this event gives reason."""
        numbers = [event.get(name) for name in NUMBERS.get(event["event"], ("",))]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            return []
        check = self._check_line if event["event"] == "train" else self._check_evaluation
        new = {kind: text for kind, text in check(event) if kind not in self.warnings}
        self.warnings |= new
        return list(new.values())

    def _check_line(self, line: Event) -> Iterator[tuple[str, str]]:
        step, norm, speed = line["step"], line["grad_norm"], line["tokens_per_second"]
        *earlier, last = self._lines or [line]
        if len(earlier) >= FEWEST:
            usual = median(each["grad_norm"] for each in earlier)
            if min(norm, last["grad_norm"]) > EXPLODED * usual:
                text = f"the gradient norm has risen from {usual:.3g} to {norm:.4g} at step {step}"
                yield "gradient", f"{text}; lower train.base_lr or raise train.warmup_steps"
        if len(self._speeds) >= FEWEST and speed < SLOW * (usual := median(self._speeds)):
            self._slow.append((line["tokens"] - last["tokens"]) / max(1.0, speed))
            if len(self._slow) >= SLOW_LINES and sum(self._slow) >= SLOW_SECONDS:
                text = f"{speed:,.0f} tokens/s, {usual:,.0f} until {format_duration(sum(self._slow))} ago"
                yield "speed", f"{text} (step {step}); heat, swapping or other programs slow it down"
        else:
            self._slow.clear()
            self._speeds.append(speed)
        self._lines.append(line)

    def _check_evaluation(self, event: Event) -> Iterator[tuple[str, str]]:
        step, loss, lasting = event["step"], event["loss"], LASTING * self._total_steps
        near = [line["loss"] for line in self._lines if line["step"] > step - lasting]
        train = fmean(near) if near else math.nan
        if self._best is None or loss < self._best[1]:
            self._best = step, loss, train
        since, lowest, before = self._best
        if step >= max(ENOUGH, HALF * self._total_steps) and lowest >= FLAT * self._unigram_loss:
            text = f"no validation loss up to step {step} is clearly below the unigram's {self._unigram_loss:.2f}"
            way_out = "change train.base_lr, or look at the text with niels_gpt prepare"
            yield "flat", f"{text}: nothing is learned but how often tokens occur; {way_out}"
        if step - since >= lasting and loss > RISE * lowest and train < before:
            val, fallen = f"from {lowest:.2f} to {loss:.2f}", f"from {before:.2f} to {train:.2f}"
            text = f"the validation loss has risen {val}, while the training loss has fallen {fallen}"
            way_out = "stop in time with train.patience=3, or use more text or model.dropout=0.1"
            yield "overfitting", f"overfitting since step {since}: {text}; {way_out}"
