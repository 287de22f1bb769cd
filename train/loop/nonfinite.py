"""Find the first number that is not finite by repeating a failed step, one microbatch at a time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from niels_gpt.data.batches import Batch
from niels_gpt.model.gpt import GPT


def find_first_nonfinite(
    model: GPT, parts: Sequence[Batch], first: int, backward: Callable[[Batch], Tensor]
) -> str:
    """Repeat a failed step and return its first non-finite weight, module or gradient, with the microbatch.

    `first` is the number of the step's first sequence; `backward` adds a microbatch's gradients. The caller has
    restored the random state from before the step.
    """
    if weight := _find_nonfinite(model.named_parameters()):
        return f"weight {weight}, before the step"
    names = {module: name for name, module in model.named_modules() if name}
    outputs: list[str] = []  # that are not finite, in the order of computation

    def check(module: torch.nn.Module, given: Any, output: Any) -> None:
        if module in names and not torch.isfinite(output).all():
            outputs.append(f"the output of {names[module]}")

    model.zero_grad(set_to_none=True)
    for number, part in enumerate(parts, 1):
        with register_module_forward_hook(check):
            loss = backward(part)
        gradients = [(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None]
        gradient = _find_nonfinite(reversed(gradients))  # in the order of the backward pass
        if gradient or not torch.isfinite(loss):
            what = outputs[0] if outputs else f"the gradient of {gradient}" if gradient else "the loss"
            last = first + len(part.x) - 1
            return f"{what} in microbatch {number} of {len(parts)}, sequences {first} to {last} of the run"
        first += len(part.x)
        outputs.clear()
    return "the sum over all microbatches"


def _find_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    return next((name for name, tensor in tensors if not torch.isfinite(tensor).all()), None)
