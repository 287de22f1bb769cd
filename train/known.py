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
    second = key.startswith("sft.")
    alike = _alike(key, {name: _own(name) for name in known if name.startswith("sft.") == second})
    return f"; did you mean {' or '.join(alike[:2])}?" if alike else ""


def _own(key: str) -> str:
    return key.rpartition(".")[2]


def _alike(key: str, own: dict[str, str]) -> list[str]:
    """Return settings whose own name is the last part of the key, or has it as a word: lr means base_lr.

    Else those that are spelt nearly so, or else those of the key's section that begin as it does: Bee means B.
    """
    section, _, word = key.rpartition(".")
    near = get_close_matches(word, own.values(), n=1, cutoff=0.7)
    return (
        [known for known, name in own.items() if name == word]
        or [known for known, name in own.items() if word in name.split("_")]
        or [known for known, name in own.items() if name in near]
        or [known for known, name in own.items() if known == f"{section}.{name}" and _begin_alike(name, word)]
    )


def _begin_alike(name: str, word: str) -> bool:
    return bool(word) and (name.startswith(word) or word.startswith(name))


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
