"""What is wrong with each override: Hydra stops at the first, the user is told of all."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from math import ceil
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from niels_gpt.config import SourceCfg
from niels_gpt.errors import ConfigError, NielsError
from train.choices import PlanCfg
from train.config import load_plan
from train.known import did_you_mean, keys, shown
from train.trust import CONF

MOST_JOBS = 1000  # of a sweep
FIRST_MANY = 8  # overrides that are tried one by one; each takes a tenth of a second
LONGEST = 200  # characters of a line of Hydra's
INTERNALS = ("full_key:", "object_type=", "reference_type=", "To append to", "Config search", "provider=")
UNREADABLE = (
    "LexerNoViableAltException",
    "mismatched input",
    "no viable alternative",
    "extraneous input",
    "token rec",
)
UNQUOTED = "cannot be read as setting=value; text with other signs than letters goes into quotes: dir='\"...\"'"
EXTRAS = {  # of pyproject.toml, for options that another package brings
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
Refusal = (HydraException, OmegaConfBaseException)


def each_problem(arguments: list[str], refusal: BaseException) -> str:
    """Return a line for each bad override among `arguments`; Hydra has refused them with `refusal`."""
    given, _ = get_args_parser().parse_known_args(arguments)  # Hydra's own: a flag may take the word after it
    overrides: list[str] = given.overrides
    elsewhere = [word for word in overrides if word.startswith("hydra.searchpath")]
    if given.config_dir or given.config_name or given.config_path or elsewhere:
        return _in_hydra_words(refusal)  # what each word means is decided by files that are not ours
    if given.multirun:
        overrides = [single for word in overrides for single in islice(_singles(word), FIRST_MANY)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        groups = tuple(word for word in overrides if word.lstrip("+").startswith("hydra/"))  # they bring settings
        suspects = _suspects(overrides, str(refusal))
        tried = [word for word in overrides if word in suspects]
        bad = {word: said for word in tried if (said := _refused(word, groups))}
        messages = [*bad.values(), *_together([word for word in overrides if word not in bad])]
    return "\n".join(messages) or _in_hydra_words(refusal)


def _singles(override: str) -> Iterator[str]:
    """Yield an override of a sweep as one for each of its values; none if a sweeper is to find them."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (*Refusal, RecursionError):
        yield override
        return
    if parsed.is_discrete_sweep() and sweep_length(parsed, FIRST_MANY) <= MOST_JOBS:
        yield from (f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator())
    elif not parsed.is_sweep_override():
        yield override


def sweep_length(sweep: Override, most: int) -> int:
    """Return how many values a sweep has; of a list, `most` are counted, of a range all, without making it."""
    values: Any = sweep.value()
    if isinstance(values, RangeSweep):
        start, stop, step = values.start or 0, values.stop or 0, values.step
        return max(0, ceil((stop - start) / step)) if step else most
    return sum(1 for _ in islice(sweep.sweep_iterator(), most))


def _suspects(overrides: list[str], said: str) -> list[str]:
    """Return the overrides to try: those first that Hydra speaks of, then those whose setting is not known."""
    known = set(keys(PlanCfg))
    order = sorted(overrides, key=lambda word: (word not in said, _key(word) in known))
    return order[:FIRST_MANY]


@cache  # a sweep's jobs share most of theirs
def _refused(override: str, groups: tuple[str, ...]) -> str:
    """Return why Hydra refuses an override by itself, or nothing; its own settings need their `groups`."""
    others = [group for group in groups if override.startswith("hydra.")]
    try:
        compose("config", overrides=[*others, override])
    except NielsError as error:
        return str(error)
    except Refusal as refusal:
        said = _in_hydra_words(refusal)
        key = _key(override)
        about = "" if key and key in said and said != UNQUOTED else f"{shown(override)}: "
        return about + said + _way_out(override, said) + _extra_for(said)
    return ""


def _together(overrides: list[str]) -> Iterator[str]:
    """Yield what pydantic says of the overrides that Hydra takes."""
    try:
        load_plan(compose("config", overrides=overrides))
    except ConfigError as error:
        yield str(error)
    except Refusal:
        return  # such as a sweep's commas, which only a sweep takes


def _in_hydra_words(error: BaseException) -> str:
    """Return what Hydra says, and what OmegaConf said to Hydra, without their internals."""
    causes = [error] + ([error.__cause__] if isinstance(error.__cause__, Refusal) else [])
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    if any(line.startswith(UNREADABLE) for line in lines):
        return UNQUOTED
    kept = [line.removeprefix("In 'config': ") for line in lines if line and not line.startswith(INTERNALS)]
    return "; ".join(shown(line.rstrip("."), LONGEST) for line in dict.fromkeys(kept)).replace(":;", ":")


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def _way_out(override: str, said: str) -> str:
    """Return the settings that an unknown key may have meant, or how a list is written."""
    key = _key(override)
    if key.startswith("hydra") or "=" not in override or (CONF / key).is_dir():
        return ""
    named = re.search(r"Key '(\w+)' not in '(\w+)'", said)
    if named and named[2] == "SourceCfgNode":  # in a list: data.sources=[{weihgt:3}]
        return did_you_mean(named[1], SourceCfg)
    if key in set(keys(PlanCfg)):
        return f"; a list is written '{key}=[...]'" if "ListConfig" in said else ""
    if named:  # of a dict: train={Bee:3}
        key = key if named[1] in key.split(".") else f"{key}.{named[1]}"
    return did_you_mean(key, PlanCfg)


def _extra_for(said: str) -> str:
    """Return how to install what an option needs."""
    missing = [extra for option, extra in EXTRAS.items() if f"'{option}'" in said]
    return f"; it comes with pip install -e '.[{missing[0]}]'" if missing else ""
