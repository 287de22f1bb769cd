"""Check that a checkpoint fits a run: the model, the phase, the tokenizer and the data."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.llama import hash_weights, read_llama
from niels_gpt.weights.paths import is_hugging_face
from train.config.suggest import format_value

# The values of older checkpoints.
UNRECORDED = {"init_from": "none", "resume": "none", "optim": "adamw", "ema": None, "split": 1, "dialogues": 1}
PATHS = {"files", "val_files", "repo"}  # settings of a source, which do not matter while the text is the same


class LoadedCheckpoint(NamedTuple):
    """A loaded checkpoint and its path, which may be a Hugging Face folder."""

    path: Path
    saved: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. CheckpointError or DataError if it cannot be used."""
        return cls(path, read_llama(path) if is_hugging_face(path) else read_checkpoint(path))

    @property
    def sequences(self) -> int:
        """Sequences trained on; older checkpoints do not record it, but their steps all had one size."""
        cfg = self.saved["train_cfg"]
        return int(cfg.get("sequences", self.saved["step"] * cfg.get("B", 1) * cfg.get("accum_steps", 1)))

    @property
    def description(self) -> str:
        """Phase, step and best loss, or a hash of other weights, which identify the checkpoint wherever it is."""
        saved = self.saved
        if not saved["optimizer_state"]:
            return f"weights {hash_weights(saved['model_state'])}"
        return f"{saved['train_cfg'].get('phase')} step {saved['step']} (best loss {saved['best_val_loss']})"


def require_same_model(found: LoadedCheckpoint, asked: ModelCfg, whose: str = "this run") -> None:
    """Require the shape of network that `whose` settings ask for. Dropout may differ; missing keys are defaults.

    CheckpointError has a line per setting that differs.
    """
    theirs = ModelCfg.model_validate(found.saved["model_cfg"]).model_dump()
    rows = [
        f"model.{key}={theirs[key]}, not {value}"
        for key, value in asked.model_dump(exclude={"dropout"}).items()
        if theirs[key] != value
    ]
    if rows:
        raise CheckpointError(
            "\n".join([f"{found.path} and {whose} have different models:", *rows]),
            "use the checkpoint's settings, another checkpoint, or another name=...",
        )


def require_same_origin(found: LoadedCheckpoint, now: Mapping[str, Any]) -> None:
    """Require the phase, the tokenizer and whatever else `now` has; older checkpoints do not record all of it.

    CheckpointError if one of them differs.
    """
    then = found.saved["train_cfg"]
    for key in (key for key in now if key != "sources"):  # which only say how the data changed
        if (theirs := then.get(key, UNRECORDED.get(key, now[key]))) != now[key]:
            remedy = "restore the original"
            match key:
                case "split" | "dialogues":
                    does = "splits training and validation" if key == "split" else "encodes dialogues"
                    reason = f"{found.path} is of an older version; this one {does} otherwise"
                    remedy = "finish the run with the version that began it"
                case "data":
                    changes = list_source_changes(then["sources"], now["sources"]) if "sources" in then else ()
                    reason = "\n".join([f"{found.path} was trained on different data", *changes])
                case "tokenizer":
                    reason = f"{found.path} was trained with a different tokenizer"
                case _:
                    own, ours = format_value(theirs), format_value(now[key])
                    reason = f"{found.path}: its {key} is {own}, but this run's is {ours}"
            way_out = f"{remedy}, or start a new run from its weights: init_from={found.path} name=..."
            raise CheckpointError(reason, way_out)


def list_source_changes(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield what changed in the sources of a run's data, a line each."""
    for label in then | now:
        if label not in now or label not in then:
            yield f"{label}: {'added' if label in now else 'removed'}"
            continue
        old, new = then[label], now[label]
        changed = [key for key in new if key != "content" and new[key] != old.get(key)]
        for key in changed:
            yield f"{label}: {key} {format_value(old.get(key))} -> {format_value(new[key])}"
        if new["content"] != old["content"] and {*changed} <= PATHS:
            yield f"{label}: the text has changed"
