"""What pydantic refuses, as a line per bad setting in Hydra's dotted form."""

import copy
from typing import Any

from pydantic import BaseModel, ValidationError

from train.known import did_you_mean, shown

Settings = dict[str, Any]
Location = tuple[int | str, ...]
Problems = dict[Location, str]
LONGEST_RULE = 400  # characters of a sentence in a message
MOST = 20  # lines of a message


def as_tuples(value: Any) -> Any:
    """Make lists tuples, which is what frozen settings hold."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def explained(error: ValidationError, settings: Settings, model: type[BaseModel]) -> str:
    """Return a line for each thing that is wrong with `settings`, which `model` has refused with `error`."""
    problems = _problems(error, model)
    problems |= _broken_rules(settings, problems, model)
    lines = list(_without_followers(problems).values())
    return "\n".join(lines if len(lines) <= MOST else [*lines[: MOST - 1], f"{len(lines) - MOST + 1} more"])


def _problems(error: ValidationError, model: type[BaseModel]) -> Problems:
    """Return a line for each thing that pydantic refuses."""
    problems: Problems = {}
    for detail in error.errors(include_url=False):
        where = shown(".".join(map(str, detail["loc"])))
        if detail["type"] == "value_error":
            rules = [shown(rule, LONGEST_RULE) for rule in str(detail["ctx"]["error"]).split("\n")]
            problems[detail["loc"]] = "\n".join(f"{where}: {rule}" if where else rule for rule in rules)
        elif detail["type"] == "missing":
            problems[detail["loc"]] = f"{where} is missing"
        elif detail["type"] == "extra_forbidden":
            problems[detail["loc"]] = f"{where} is unknown{did_you_mean(where, model)}"
        elif detail["type"] == "string_too_short":
            problems[detail["loc"]] = f"{where} is empty; leave it out, or give it a value"
        elif detail["type"] == "string_pattern_mismatch":
            problems[detail["loc"]] = (
                f"{where}={shown(detail['input'])}: only letters, digits, '.', '_' and '-', at most 64"
            )
        else:
            reason = detail["msg"][0].lower() + detail["msg"][1:]
            problems[detail["loc"]] = f"{where}={shown(detail['input'])}: {reason}"
    return problems


def _broken_rules(settings: Settings, problems: Problems, model: type[BaseModel]) -> Problems:
    """Return the rules between fields that are broken too, seen once bad values give way to defaults."""
    repaired = copy.deepcopy(settings)
    for location in problems:
        parent: Any = repaired
        for key in location[:-1]:
            parent = parent[key] if isinstance(parent, dict) and key in parent else {}
        if isinstance(parent, dict) and location:
            parent.pop(location[-1], None)
    try:
        model.model_validate(as_tuples(repaired))
    except ValidationError as error:
        again = _problems(error, model)
        rules = {tuple(d["loc"]) for d in error.errors() if d["type"] == "value_error"}
        broken = {location: _not_about(problems, text) for location, text in again.items() if location in rules}
        return {location: text for location, text in broken.items() if text}
    return {}


def _not_about(problems: Problems, text: str) -> str:
    """Drop the lines that speak of a setting which is a problem itself: it has given way to its default."""
    refused = [".".join(map(str, location)) + "=" for location in problems if location]
    return "\n".join(line for line in text.split("\n") if not any(name in line for name in refused))


def _without_followers(problems: Problems) -> Problems:
    """Drop what is said of sft.X because X, which it follows, is wrong in the same way."""
    kept: Problems = {}
    for location, text in problems.items():
        if location[:1] == ("sft",) and problems.get(location[1:]) == text.removeprefix("sft."):
            continue
        kept[location] = text
    return kept
