"""How cost grows: one size of a shape is varied at a time, measured with memory off and ckpt, beside theory.

Theory of speed: the share of the machine's limit that the shape in the middle reaches with memory off is fixed;
tokens/s at other sizes follow from their work alone. Theory of memory is that of train/step_cost.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.bench.contestants import CONTESTANTS, CPU, train_cfg
from train.bench.race import Turn, limits_now, taken
from train.bench.shapes import Shape
from train.step_cost import theory

MEMORIES = {"off": "ours", "ckpt": "ours-ckpt"}  # -> who takes the steps
Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """Turns of each point, timed steps of each turn after those that warm up, and threads."""

    rounds: int
    steps: int
    warmup: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """The shapes of each axis, ascending, the turns of each shape with each memory, and the limit in GFLOP/s."""

    effort: Effort
    middle: Shape
    axes: dict[str, list[Shape]]
    turns: dict[tuple[Shape, str], list[Turn]]
    limit: float

    def wall(self, shape: Shape, memory: str) -> float:
        """Return the median seconds of a step."""
        return median(turn.seconds("wall") for turn in self.turns[shape, memory])

    def cpu(self, shape: Shape, memory: str) -> float:
        """Return the median CPU seconds of a step, all threads together."""
        return median(turn.seconds("cpu") for turn in self.turns[shape, memory])

    def peak(self, shape: Shape, memory: str) -> int:
        """Return the most bytes of tensors there were in a step, above weights and optimizer state."""
        return max(turn.peak or 0 for turn in self.turns[shape, memory])

    @property
    def share(self) -> float:
        """The share of the limit that the middle reaches with memory off: the one number fitted."""
        return self.middle.flops / self.wall(self.middle, "off") / 1e9 / self.limit

    def tokens_in_theory(self, shape: Shape, memory: str) -> float:
        """Return the tokens a second that this share gives."""
        work = shape.flops + (shape.flops_again if memory == "ckpt" else 0)
        return shape.tokens * self.share * self.limit * 1e9 / work


def peak_in_theory(shape: Shape, memory: str) -> int:
    """Return the bytes that a step takes above weights and optimizer state."""
    return theory(shape.model, train_cfg(shape, CONTESTANTS[MEMORIES[memory]].settings, 1), CPU)


def grow(middle: Shape, axes: Sequence[str], factors: Sequence[float], effort: Effort, say: Say) -> Growth:
    """Measure every shape with each memory, each turn in a fresh process, round by round.

    Raises:
        ConfigError: a shape cannot be.
        RaceFailed: one could not take its steps.
    """
    shapes = {axis: [varied(middle, axis, factor) for factor in sorted({1.0, *factors})] for axis in axes}
    points = list(
        dict.fromkeys((shape, memory) for row in shapes.values() for shape in row for memory in MEMORIES)
    )
    limit = limits_now(effort.threads)["gflops"]
    turns: dict[tuple[Shape, str], list[Turn]] = {point: [] for point in points}
    for number in range(effort.rounds):
        for shape, memory in points:
            turn = taken(MEMORIES[memory], shape, effort.steps, effort.warmup, effort.threads, counted=True)
            turns[shape, memory].append(turn)
            say(f"round {number + 1}: {letters(shape)} memory={memory}: {turn.seconds('wall'):.3f} s a step")
    return Growth(effort, middle, shapes, turns, limit)


def size(shape: Shape, axis: str) -> int:
    """Return how large a shape is along an axis."""
    return int(shape.B if axis == "B" else getattr(shape.model, axis))


def varied(shape: Shape, axis: str, factor: float) -> Shape:
    """Return the shape with one size that many times as large.

    Raises:
        ConfigError: there is no such shape.
    """
    changed = size(shape, axis) * factor
    given = shape.model_dump()
    (given if axis == "B" else given["model"])[axis] = int(changed) if changed == int(changed) else changed
    try:
        return Shape(**given)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ConfigError(
            f"{axis}={size(shape, axis)} times {factor:g} is {changed:g}: {why}", "choose other --factors"
        ) from None


def letters(shape: Shape) -> str:
    """Return the sizes of a shape."""
    m = shape.model
    sizes = f"T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} V={m.V} B={shape.B}"
    return sizes + (f" accum_steps={shape.accum_steps}" if shape.accum_steps > 1 else "")
