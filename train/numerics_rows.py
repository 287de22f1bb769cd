"""Holds what a precision computed against fp32, in numbers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from train.numerics_pass import Pass, Precision

TOTAL = "total"


@dataclass(frozen=True)
class Part:
    """How a part of a gradient compares with fp32; `flushed` is the share that became 0 and was not in fp32."""

    cosine: float
    error: float
    flushed: float


@dataclass(frozen=True)
class Row:
    """How a precision compares with fp32. Losses in nats a target; `error` is relative, in `parts`."""

    name: str
    scale: float
    loss: float
    loss_difference: float
    largest_activation: float
    dtype_max: float
    parts: dict[str, Part]
    verdict: str = ""


def compared(precision: Precision, made: Pass, reference: Pass) -> Row:
    """Hold what a precision computed against fp32."""
    sums = {part: products(made.gradient[part], exact) for part, exact in reference.gradient.items()}
    sums[TOTAL] = [sum(column) for column in zip(*sums.values(), strict=True)]
    return Row(
        name=precision.name,
        scale=made.scale,
        loss=made.loss,
        loss_difference=made.loss - reference.loss,
        largest_activation=made.largest,
        dtype_max=torch.finfo(precision.dtype).max,
        parts={part: part_of(*values) for part, values in sums.items()},
    )


def products(ours: Tensor, exact: Tensor) -> list[float]:
    """Return the sums that a comparison is made of; those of parts add up to those of the whole."""
    a, b = ours.double(), exact.double()  # squares of small gradients are below fp32's range
    return [
        float((a * a).sum()),
        float((b * b).sum()),
        float((a * b).sum()),
        float((a - b).square().sum()),
        float(((a == 0) & (b != 0)).sum()),
        float((b != 0).sum()),
    ]


def part_of(aa: float, bb: float, ab: float, difference: float, flushed: float, entries: float) -> Part:
    """Return the comparison that sums of products stand for."""
    lengths = math.sqrt(aa * bb)
    return Part(
        cosine=ab / lengths if lengths else float(aa == bb),
        error=math.sqrt(difference / bb) if bb else float(difference > 0),
        flushed=flushed / entries if entries else 0.0,
    )
