"""Whether stored weights are those of their settings, told from shapes alone, before a model takes memory."""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from niels_gpt.plain import first_fault

LONGEST = 80  # characters of a name that somebody else chose


def misfit(model_cfg: dict[str, Any], model_state: dict[Any, Any]) -> str:
    """Return why weights do not fit the settings beside them, which may ask for any memory; nothing if they do."""
    try:
        expected = weight_shapes(ModelCfg.model_validate(model_cfg))
    except ValidationError as error:
        setting, why = first_fault(error, "model_cfg")
        return f"{setting:.{LONGEST}} cannot be used ({why})"
    stored = {name: _shape(value) for name, value in model_state.items()}
    for name in expected | stored:
        there, wanted = stored.get(name, "missing"), expected.get(name, "nothing")
        if there != wanted:
            return f"its model_state does not fit its model_cfg: {name!s:.{LONGEST}} is {there}, not {wanted}"
    return ""


def weight_shapes(cfg: ModelCfg) -> dict[str, str]:
    """Return the shape of each weight of a GPT, as `512 x 32`; one block, without memory, stands for all."""
    with torch.device("meta"):
        state = GPT(cfg.model_copy(update={"L": 1})).state_dict()
    blocks = {name for name in state if name.startswith("blocks.0.")}
    shapes = {name: _shape(tensor) for name, tensor in state.items()}
    rest = {name: shape for name, shape in shapes.items() if name not in blocks}
    return rest | {
        f"blocks.{n}.{name.removeprefix('blocks.0.')}": shapes[name] for n in range(cfg.L) for name in blocks
    }


def values_in(tree: Any) -> Iterator[Any]:
    """Yield everything in nested dicts, lists and tuples, themselves included: twice what stands there twice."""
    yield tree
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    for part in parts:
        yield from values_in(part)


def takes_more(tree: Any, most: int) -> bool:
    """Return whether nested tensors take more than `most` bytes, any other value counting as one.

    Each tensor is taken for dense: one that repeats a number becomes so in use. A list that stands in itself, or
    in another many times over, is not gone through to its end.
    """
    taken = 0
    for value in values_in(tree):
        taken += value.nbytes if isinstance(value, Tensor) and value.layout == torch.strided else 1
        if taken > most:
            return True
    return False


def _shape(value: Any) -> str:
    """Return the shape of a dense tensor of real numbers."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return "no weight"
    return " x ".join(map(str, value.shape))
