"""Read small untrusted files as text or JSON; errors name the file and the place."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

MESSAGES = {  # by pydantic's types of errors
    "missing": "must be given",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be more than {gt}",
    "less_than": "must be less than {lt}",
    "too_short": "must have {min_length} or more",
    "too_long": "must have {max_length} or fewer",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be text, or a list of texts",
    "model_type": "must be an object",
}


class UnreadableFile(ValueError):
    """A file that cannot be used; the message has its name, the place and the reason."""


def read_text(path: Path, max_bytes: int) -> str:
    """Return the UTF-8 text of a regular file of at most `max_bytes`, without its BOM, or raise UnreadableFile."""
    if path.exists() and not path.is_file():  # opening a FIFO would wait
        raise UnreadableFile(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(f"{path}:{line}: not UTF-8") from error
    if len(content) > max_bytes:
        raise UnreadableFile(f"{path}: larger than {max_bytes} bytes")
    return text


def read_json(path: Path, max_bytes: int = 1 << 20) -> Any:
    """Return the content of a JSON file of at most `max_bytes`, or raise UnreadableFile."""
    text = read_text(path, max_bytes)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"{path}:{error.lineno}:{error.colno}: invalid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # nan, thousands of digits or of brackets
        raise UnreadableFile(f"{path}: invalid JSON ({error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def explain_first_error(error: ValidationError, *within: str) -> tuple[str, str]:
    """Return the location, as a dotted path below `within`, and the message of the first validation error."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if template := MESSAGES.get(first["type"]):
        limits = first.get("ctx", {}).items()
        message = template.format_map({k: format(v, ".15g") if isinstance(v, float) else v for k, v in limits})
    return ".".join([*within, *map(str, first["loc"])]), message
