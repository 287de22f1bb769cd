"""Says what a comparison with fp32 means for who has to choose a precision."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from train.numerics_pass import FP32, PRECISIONS, Precision
from train.numerics_rows import TOTAL, Row

ROUNDINGS = 8  # an error of so many of a dtype's steps is rounding, which averages out; above it lies a loss
NARROW = 0.25  # of a dtype's range; activations that reach further may leave it as training goes on


def with_verdicts(rows: Sequence[Row], targets: int) -> Iterator[Row]:
    """Yield the rows, each with its verdict; what is advised is what did well here."""
    good = {precision.setting for precision, row in zip(PRECISIONS, rows, strict=True) if keeps(precision, row)}
    advised = [f"precision={setting}" for setting in ("bf16", "fp16_scaled") if setting in good]
    advice = " or ".join(advised) or "precision=off"
    for precision, row in zip(PRECISIONS, rows, strict=True):
        words = f"{row.name}: {verdict(precision, row, targets, advice)}"
        yield replace(row, verdict=words)


def keeps(precision: Precision, row: Row) -> bool:
    """Return whether the gradient is that of fp32 but for rounding; what is not finite never is."""
    return row.parts[TOTAL].error <= ROUNDINGS * torch.finfo(precision.dtype).eps and math.isfinite(row.loss)


def verdict(precision: Precision, row: Row, targets: int, advice: str) -> str:
    """Say what a row means for who has to choose a precision."""
    total = row.parts[TOTAL]
    if precision is FP32:
        return "what the others are held against" + (
            ", repeated exactly" if not total.error else f"; repeated with an error of {total.error:.1e}"
        )
    way_out = f"use {advice}" if precision.setting else "which is why training computes the head in fp32"
    if not math.isfinite(total.error + row.loss + row.largest_activation):
        return f"overflows, loss, gradient or activations are not finite; {way_out}"
    if not keeps(precision, row):
        return f"{percent(min(1.0, total.error))} of the gradient is lost at {targets} targets; {way_out}"
    reach = row.largest_activation / row.dtype_max
    if reach > NARROW:
        return f"keeps the gradient, but activations reach {percent(reach)} of its range; use precision=bf16"
    return f"keeps the gradient: {percent(total.error)} of rounding at {targets} targets"


def percent(share: float) -> str:
    """Return a share for a person, with two digits that count."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
