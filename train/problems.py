"""Explain what pydantic refuses, one line per bad setting in Hydra's dotted form."""

from typing import Any

from pydantic import BaseModel, ValidationError

from train.known import did_you_mean, keys, shown

Settings = dict[str, Any]
LONGEST_RULE = 400  # characters of a sentence in a message
MOST = 20  # lines of a message


def as_tuples(value: Any) -> Any:
    """Make lists tuples, which is what frozen settings hold."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def explain_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a line for each setting that `model` refuses; sft.X that merely follows X is left out."""
    lines = [line for detail in error.errors(include_url=False) for line in _explain(detail, model)]
    lines = [line for line in lines if not (line.startswith("sft.") and line.removeprefix("sft.") in lines)]
    return "\n".join(lines if len(lines) <= MOST else [*lines[:MOST], f"and {len(lines) - MOST} more"])


def _explain(detail: Any, model: type[BaseModel]) -> list[str]:
    where, given = shown(".".join(map(str, detail["loc"]))), shown(detail["input"])
    match detail["type"]:
        case "value_error":  # our own rules, a sentence each
            rules = [shown(rule, LONGEST_RULE) for rule in str(detail["ctx"]["error"]).split("\n")]
            return [f"{where}: {rule}" if where else rule for rule in rules]
        case "missing":
            return [f"{where} is missing"]
        case "extra_forbidden":
            return [f"{where} is unknown{did_you_mean(where, keys(model))}"]
        case "string_too_short":
            return [f"{where} is empty; leave it out, or give it a value"]
        case "string_pattern_mismatch":
            return [f"{where}={given}: only letters, digits, '.', '_' and '-', at most 64"]
    return [f"{where}={given}: {detail['msg'][0].lower()}{detail['msg'][1:]}"]
