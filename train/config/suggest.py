"""Setting names, and suggestions for misspelt ones."""

import json
import os
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
TRAIN_VARIABLE = "NIELS_TRAIN_COMMAND"  # scripts/train.py sets it, for its children too


def name_train_command() -> str:
    """Return the command of training that the user used: niels_gpt train, or python scripts/train.py."""
    return os.environ.get(TRAIN_VARIABLE, "niels_gpt train")


def point_to_help() -> str:
    """Return the hint about the list of settings."""
    return f"{name_train_command()} --help lists all settings"


def list_settings(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every setting in Hydra's dotted form."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from list_settings(info.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return up to two likely names for an unknown key, as the end of a sentence: base_lr for lr."""
    word = key.rpartition(".")[2]
    phase = [name for name in known if name.startswith("sft.") == key.startswith("sft.")]
    alike = [name for name in phase if f".{name}".endswith((f".{word}", f"_{word}"))]
    alike = alike or get_close_matches(key, phase, n=1, cutoff=0.77)
    return f"; did you mean {' or '.join(alike[:2])}?" if alike else ""


def format_value(value: object, length: int = 80) -> str:
    """Return a value as one printable line of at most `length` characters, null and booleans as in YAML."""
    value = list(value) if isinstance(value, tuple) else value
    shown = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    text = escape_line(shown[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


def require_known(what: str, asked: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError for names that are not known."""
    if unknown := sorted(set(asked) - set(known)):
        raise ConfigError(f"there is no {what} {', '.join(unknown)}", f"choose from {', '.join(known)}")
