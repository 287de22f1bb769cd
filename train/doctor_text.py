"""The form of what the doctor found: its tables."""

from train.step_cost import Cost, pairs
from train.text_table import mib, table


def cost_table(costs: list[Cost]) -> str:
    """Return the measurements, a line per variant; what is saved is against the line above."""
    head = ("precision", "memory", "s/step", "tokens/s", "peak MiB", "driver MiB", "saved", "in theory")
    rows = [cost_row(cost, off) for off, ckpt in pairs(costs) for cost in (off, ckpt)]
    return table([head, *rows])


def cost_row(cost: Cost, off: Cost) -> tuple[str, ...]:
    """Return the cells of one measurement; `off` is the one without recomputation."""
    if cost.seconds is None:
        return cost.precision, cost.memory, cost.trouble
    cells = (f"{cost.seconds:.3f}", f"{cost.tokens_per_second:,.0f}", mib(cost.peak), mib(cost.driver))
    saved = off.peak - cost.peak if off.peak and cost.peak else None
    compared = ("-", "-") if cost is off else (mib(saved), mib(off.theory - cost.theory))
    return cost.precision, cost.memory, *cells, *compared
