"""Read a checkpoint safely: check its CRCs and shapes, and execute nothing."""

import errno
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, first_line, is_out_of_memory
from niels_gpt.model.gpt import GPT
from niels_gpt.untrusted import explain_first_error
from niels_gpt.weights.paths import HINT

CHECKPOINT_KEYS: dict[str, Any] = {
    "model_cfg": dict,
    "train_cfg": dict,
    "model_state": dict,
    "optimizer_state": dict,
    "step": int,
    "best_val_loss": float | int | None,
}
DIRECTORY = 0x10  # attribute of a record in a zip file; torch would read zeros from it
BAD_FILE = (None, errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # a bad offset or a bad path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the six keys of a checkpoint, all tensors on the CPU.

    The CRC-32 of every record is checked first, which torch does not do. Nothing in the file is executed
    (weights_only).

    CheckpointError if the file is missing, damaged, not a checkpoint of this project, or its weights do not fit
    its settings. OSError if it cannot be read now. This error and too little memory do not mean that the file is
    bad.
    """
    if path.exists() and not path.is_file():  # opening a FIFO would wait
        raise CheckpointError(f"{path}: not a regular file", HINT)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is damaged (its records exceed its size)", _suggest_others(path))
            if any(record.external_attr & DIRECTORY for record in archive.infolist()):
                raise CheckpointError(f"{path} is damaged (a record became a folder)", _suggest_others(path))
            if broken := archive.testzip():
                raise CheckpointError(f"{path} is damaged (bad CRC-32 of {broken})", _suggest_others(path))
        return _check_content(torch.load(path, map_location="cpu", weights_only=True), path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint", _suggest_others(path)) from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds of error for a damaged file
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in BAD_FILE):
            raise  # the file may be good
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})", _suggest_others(path)) from error


def _check_content(saved: Any, path: Path) -> dict[str, Any]:
    """Return the content of `path` if a model can be made from it."""
    if not isinstance(saved, dict) or saved.keys() != CHECKPOINT_KEYS.keys():
        raise CheckpointError(f"{path} is not a niels_gpt checkpoint", f"its keys must be {[*CHECKPOINT_KEYS]}")
    if wrong := [key for key, kinds in CHECKPOINT_KEYS.items() if not isinstance(saved[key], kinds)]:
        raise CheckpointError(f"{path}: its {wrong[0]} has the wrong type", _suggest_others(path))
    if _exceeds(saved, path.stat().st_size):
        raise CheckpointError(
            f"{path}: its tensors are larger than the file, so it was tampered with", _suggest_others(path)
        )
    # The oldest checkpoints lack the key, and their head is tied.
    saved["model_cfg"] = {"tie_embeddings": True} | saved["model_cfg"]
    if reason := find_misfit(saved["model_cfg"], saved["model_state"]):
        raise CheckpointError(f"{path}: {reason}", _suggest_others(path))
    return saved


def _suggest_others(path: Path) -> str:
    """Suggest the other checkpoints in the folder."""
    others = sorted(other.name for other in path.parent.glob("*.pt") if other != path)
    return f"others in its folder: {', '.join(others)}" if others else HINT


def load_model(path: Path) -> tuple[GPT, dict[str, Any]]:
    """Return the GPT of a checkpoint, on the CPU and in evaluation mode, and its train_cfg. Errors as above."""
    saved = read_checkpoint(path)
    return make_model(saved), saved["train_cfg"]


def make_model(saved: dict[str, Any]) -> GPT:
    """Return the GPT of a checkpoint's content, on the CPU and in evaluation mode."""
    model = GPT(ModelCfg.model_validate(saved["model_cfg"]))
    model.load_state_dict(saved["model_state"])
    return model.eval()


def get_phase_folder(checkpoint: Path) -> Path:
    """Return a checkpoint's folder as an absolute path: its name is the phase, its parent the run folder."""
    return Path(os.path.abspath(checkpoint)).parent


def find_misfit(model_cfg: dict[str, Any], model_state: dict[Any, Any]) -> str:
    """Return why weights do not match model_cfg, or "".

    The model is made on the meta device, so that a forged model_cfg allocates nothing.
    """
    try:
        cfg = ModelCfg.model_validate(model_cfg)
    except ValidationError as error:
        setting, why = explain_first_error(error, "model_cfg")
        return f"{setting:.80} cannot be used ({why})"
    with torch.device("meta"):
        expected = GPT(cfg).state_dict()
    for name in expected | model_state:
        found, wanted = _describe_shape(model_state.get(name)), _describe_shape(expected.get(name))
        if found != wanted:
            return f"its model_state does not fit its model_cfg: {name!s:.80} is {found}, not {wanted}"
    return ""


def walk_values(tree: Any) -> Iterator[Any]:
    """Yield a tree of dicts, lists and tuples and everything in it; repeated values repeatedly."""
    yield tree
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    for part in parts:
        yield from walk_values(part)


def _exceeds(tree: Any, max_bytes: int) -> bool:
    """Return whether the tensors of a tree take more than `max_bytes` when dense; other values count as one."""
    taken = 0
    for value in walk_values(tree):  # stops early, because nested lists may unfold to 2**64 values
        taken += value.nbytes if isinstance(value, Tensor) and value.layout == torch.strided else 1
        if taken > max_bytes:
            return True
    return False


def _describe_shape(value: Any) -> str:
    """Return the shape of a dense tensor of real numbers, such as `512 x 32`."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return "no weight"
    return " x ".join(map(str, value.shape))
