"""Check that a checkpoint fits a run: the model, the phase, the tokenizer and the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import read_checkpoint
from train.config.suggest import format_value

UNRECORDED = {"init_from": "none", "resume": "none", "optim": "adamw"}  # what older checkpoints do not say


class Found(NamedTuple):
    """A checkpoint that was read, and its file, which every refusal names."""

    path: Path
    saved: dict[str, Any]

    @classmethod
    def at(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            CheckpointError: it cannot be used.
        """
        return cls(path, read_checkpoint(path))

    @property
    def sequences(self) -> int:
        """How many sequences it was trained on; an older checkpoint does not say, but had steps of one size."""
        cfg = self.saved["train_cfg"]
        return int(cfg.get("sequences", self.saved["step"] * cfg.get("B", 1) * cfg.get("accum_steps", 1)))

    @property
    def described(self) -> str:
        """What tells it from others of its kind, wherever it lies."""
        saved = self.saved
        return f"{saved['train_cfg'].get('phase')} step {saved['step']} (best loss {saved['best_val_loss']})"


def recorded(found: Found) -> dict[str, Any]:
    """Return what a checkpoint says of its past, to be said on by those that follow it."""
    then = found.saved["train_cfg"]
    return {key: then[key] for key in ("init_from", "resume", "changes") if key in then}


def require_same_model(found: Found, asked: ModelCfg, whose: str = "this run") -> None:
    """Compare what shapes the network; dropout may change, and what an older checkpoint lacks is the default.

    Raises:
        CheckpointError: what differs from the model that is asked for, and `whose` that is.
    """
    theirs = ModelCfg.model_validate(found.saved["model_cfg"]).model_dump()
    rows = [
        f"model.{key}={theirs[key]}, not {value}"
        for key, value in asked.model_dump(exclude={"dropout"}).items()
        if theirs[key] != value
    ]
    if rows:
        raise CheckpointError(
            "\n".join([f"{found.path} is of another model than {whose} asks for:", *rows]),
            "use the checkpoint's settings, another checkpoint, or another name=...",
        )


def require_same_origin(found: Found, now: Mapping[str, str]) -> None:
    """Compare the phase, the tokenizer and whatever else `now` says of a run.

    Raises:
        CheckpointError: what differs; older checkpoints do not say all of it.
    """
    then = found.saved["train_cfg"]
    for key, value in now.items():
        if (theirs := then.get(key, UNRECORDED.get(key, value))) != value:
            raise CheckpointError(
                f"{found.path}: its {key} is {format_value(theirs)}, but this run's is {value}",
                "ask for what it was; or use init_from=PATH to take the weights alone, or another name=...",
            )
