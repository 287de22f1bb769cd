"""YAML of settings, which others may have written: plain data, small, without aliases, refused with its place."""

from pathlib import Path
from typing import Any

import yaml

from niels_gpt.errors import ConfigError
from niels_gpt.plain import Unreadable, read_text

MOST = 1 << 20  # bytes of a config
DEEPEST = 100  # brackets or levels within one another
HINT = "mend the file, or leave it out"


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says.

    Raises:
        ConfigError: it is no such file; the message names file, line and column.
    """
    require_plain(path)
    return yaml.safe_load(read_text(path, MOST))


def require_plain(path: Path) -> None:
    """Refuse a file that is no plain YAML.

    An alias stands for a whole tree, so that a few lines of them can stand for gigabytes.

    Raises:
        ConfigError: naming file, line and column.
    """
    text = ""
    try:
        text = read_text(path, MOST)
        if (found := _not_plain(text)) is not None:
            mark, reason = found
            raise ConfigError(f"{path}:{mark.line + 1}:{mark.column + 1}: {reason}", HINT)
    except Unreadable as error:
        raise ConfigError(str(error), HINT) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not YAML ({error.problem or error.context})", HINT) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not YAML ({error.reason})", HINT) from None


def _not_plain(text: str) -> tuple[yaml.Mark, str] | None:
    """Return where there is an alias, a tag of Python's or too deep a nesting; None if there is none."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            return event.start_mark, "an alias, where the value itself has to be written"
        if depth > DEEPEST:
            return event.start_mark, f"more than {DEEPEST} levels within one another"
        if (getattr(event, "tag", None) or "").startswith("tag:yaml.org,2002:python/"):
            return event.start_mark, f"{event.tag} would make Python objects"
    return None
