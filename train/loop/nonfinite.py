"""Find the first number that is not finite by repeating a failed step, one microbatch at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch
from niels_gpt.model.gpt import GPT


def find_first_nonfinite(
    model: GPT, parts: Sequence[Batch], first: int, backward: Callable[[Batch], Tensor]
) -> str:
    """Repeat a failed step and return its first non-finite weight, module or gradient, with the microbatch.

    `first` is the number of the step's first sequence; `backward` adds a microbatch's gradients. The caller has
    restored the random state from before the step.
    """
    weights = list(model.named_parameters())
    if spoilt := _first(weights, lambda weight: weight):
        return f"weight {spoilt}, before the step"
    model.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        with _watched(model) as spoilt_modules:
            loss = backward(part)
        spoilt_gradient = _first(weights[::-1], lambda weight: weight.grad)  # in the order of the backward pass
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
    """Return the name of the first weight with a non-finite `part`, or an empty string."""
    for name, weight in weights:
        if (tensor := part(weight)) is not None and not torch.isfinite(tensor).all():
            return name
    return ""


@contextmanager
def _watched(model: GPT) -> Iterator[list[str]]:
    """Collect the names of modules with non-finite outputs, in the order of computation."""
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
