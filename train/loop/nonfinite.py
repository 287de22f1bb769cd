"""Find the first number that is not finite by repeating a failed step, one microbatch at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch
from niels_gpt.model.gpt import GPT


def first_not_finite(model: GPT, parts: Sequence[Batch], first: int, backward: Callable[[Batch], Tensor]) -> str:
    """Return which microbatch, and which weight, module or gradient in it; `first` is its first sequence's number.

    The caller has set the random state as it was before the step; `backward` adds a microbatch's gradients.
    """
    weights = list(model.named_parameters())
    if spoilt := _first(weights, lambda weight: weight):
        return f"weight {spoilt}, before the step"
    model.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        with _watched(model) as spoilt_modules:
            loss = backward(part)
        spoilt_gradient = _first(weights[::-1], lambda weight: weight.grad)  # as they come, the last one first
        if torch.isfinite(loss) and not spoilt_gradient:
            first += len(part.x)
            continue
        what = f"the output of {spoilt_modules[0]}" if spoilt_modules else f"the gradient of {spoilt_gradient}"
        where = (
            f"microbatch {number + 1} of {len(parts)}, sequences {first} to {first + len(part.x) - 1} of the run"
        )
        return f"{what if spoilt_modules or spoilt_gradient else 'the loss'} in {where}"
    return "the sum over all microbatches"


def _first(weights: Sequence[tuple[str, Tensor]], part: Callable[[Tensor], Tensor | None]) -> str:
    """Return the name of the first weight of which a part is not finite, if there is one."""
    for name, weight in weights:
        if (tensor := part(weight)) is not None and not torch.isfinite(tensor).all():
            return name
    return ""


@contextmanager
def _watched(model: GPT) -> Iterator[list[str]]:
    """Collect the names of the modules whose outputs are not finite, the first to compute one first."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: torch.nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
