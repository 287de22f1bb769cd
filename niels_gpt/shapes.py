"""Checks a foreign checkpoint before a model takes memory: its size, and its weights against its settings."""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from niels_gpt.plain import first_fault


def misfit(model_cfg: dict[str, Any], model_state: dict[Any, Any]) -> str:
    """Return why weights do not fit the settings beside them, which may ask for any memory; empty if they do."""
    try:
        cfg = ModelCfg.model_validate(model_cfg)
    except ValidationError as error:
        setting, why = first_fault(error, "model_cfg")
        return f"{setting:.80} cannot be used ({why})"
    with torch.device("meta"):
        expected = GPT(cfg).state_dict()
    for name in expected | model_state:
        there, wanted = _shape(model_state.get(name)), _shape(expected.get(name))
        if there != wanted:
            return f"its model_state does not fit its model_cfg: {name!s:.80} is {there}, not {wanted}"
    return ""


def values_in(tree: Any) -> Iterator[Any]:
    """Yield everything in nested dicts, lists and tuples, including themselves; repeated values repeatedly."""
    yield tree
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    for part in parts:
        yield from values_in(part)


def takes_more(tree: Any, most: int) -> bool:
    """Return whether nested tensors take more than `most` bytes when dense, any other value counting as one."""
    taken = 0
    for value in values_in(tree):  # stops early: nested lists may unfold to 2**64 values
        taken += value.nbytes if isinstance(value, Tensor) and value.layout == torch.strided else 1
        if taken > most:
            return True
    return False


def _shape(value: Any) -> str:
    """Return the shape of a dense tensor of real numbers, such as `512 x 32`."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return "no weight"
    return " x ".join(map(str, value.shape))
