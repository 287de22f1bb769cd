"""The settings that there are, which one a wrong name may have meant, and how a value is shown."""

from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches

from pydantic import BaseModel

from niels_gpt.errors import ConfigError
from niels_gpt.printable import printable

HELP = "python scripts/train.py --help lists all settings"
LONGEST = 80  # characters of a value in a message


def keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every setting in Hydra's dotted form."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def did_you_mean(key: str, model: type[BaseModel]) -> str:
    """Return the settings that an unknown key may have meant, as the end of a sentence; none for a known one."""
    known = list(keys(model))
    if key in known:
        return ""
    close = get_close_matches(key, known, n=2, cutoff=0.7) or _same_ending(key.rpartition(".")[2], known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _same_ending(word: str, known: list[str]) -> list[str]:
    """Return settings whose own name is the last part of the key, or has it as a word: lr means base_lr."""
    own = {key: key.rpartition(".")[2] for key in known if not key.startswith("sft.")}
    alike = [key for key, name in own.items() if word == name] or [
        key for key, name in own.items() if word in name.split("_")
    ]
    names = get_close_matches(word, own.values(), n=1, cutoff=0.7)
    return (alike or [key for key, name in own.items() if name in names])[:2]


def shown(value: object, longest: int = LONGEST) -> str:
    """Return a value as one printable line of bounded length."""
    text = printable(str(list(value) if isinstance(value, tuple) else value)[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}..."


def require_known(what: str, asked: Iterable[str], known: Collection[str], more: str = "") -> None:
    """Refuse names that nothing has.

    Raises:
        ConfigError: there are such names; its hint ends with `more`.
    """
    if unknown := sorted(set(asked) - set(known)):
        raise ConfigError(f"there is no {what} {', '.join(unknown)}", f"choose among {', '.join(known)}{more}")
