"""What is wrong with each override: Hydra stops at the first, the user is told of all."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from niels_gpt.errors import ConfigError
from train.config import PlanCfg, load_plan

CONF = Path(__file__).resolve().parent.parent / "conf"
FIRST_MANY = 20  # overrides that are tried one by one; each takes a tenth of a second
INTERNALS = ("full_key:", "object_type=", "reference_type=", "To append to", "Config search", "provider=")
OTHER_CONFIG = ("--config", "-cd", "-cn", "-cp", "hydra.searchpath")
MULTIRUN = ("-m", "--multirun")
EXTRAS = {  # of pyproject.toml, for options that another package brings
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
LISTS = ("files", "packages", "sources", "betas", "objective")
Refusal = (HydraException, OmegaConfBaseException)


def each_problem(arguments: list[str], refusal: BaseException) -> str:
    """Return a line for each bad override among `arguments`; Hydra has refused them with `refusal`."""
    if any(word.startswith(OTHER_CONFIG) for word in arguments):
        return _in_hydra_words(refusal)  # what each word means is decided by files that are not ours
    overrides = [word for word in arguments if not word.startswith("-")]
    if any(word in MULTIRUN for word in arguments):
        overrides = [single for word in overrides for single in _singles(word)]
    overrides = overrides[:FIRST_MANY]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        groups = [word for word in overrides if word.lstrip("+").startswith("hydra/")]  # they bring settings
        bad = {word: said for word in overrides if (said := _refused(word, groups))}
        messages = [*bad.values(), *_together([word for word in overrides if word not in bad])]
    return "\n".join(messages) or _in_hydra_words(refusal)


def _singles(override: str) -> list[str]:
    """Return an override of a sweep as one for each of its values; none if a sweeper is to find them."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except Refusal:
        return [override]
    if parsed.is_discrete_sweep():
        return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    return [] if parsed.is_sweep_override() else [override]


def _refused(override: str, groups: list[str]) -> str:
    """Return why Hydra refuses an override by itself, or nothing; its own settings need their `groups`."""
    others = [group for group in groups if override.startswith("hydra.")]
    try:
        compose("config", overrides=[*others, override])
    except Refusal as refusal:
        said = _in_hydra_words(refusal)
        return said + _did_you_mean(override) + _extra_for(said)
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
    causes = [error] + ([error.__cause__] if error.__cause__ else [])
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    kept = [line.removeprefix("In 'config': ") for line in lines if line and not line.startswith(INTERNALS)]
    return "; ".join(line.rstrip(".") for line in dict.fromkeys(kept)).replace(":;", ":")


def _did_you_mean(override: str) -> str:
    """Return the settings that an unknown key may have meant, or how a list is written."""
    key = override.split("=")[0].lstrip("+~")
    known = set(_keys(PlanCfg))
    if key in known:
        return f"; a list is written '{key}=[...]'" if key.endswith(LISTS) else ""
    close = get_close_matches(key, known, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _extra_for(said: str) -> str:
    """Return how to install what an option needs."""
    missing = [extra for option, extra in EXTRAS.items() if f"'{option}'" in said]
    return f"; it comes with pip install -e '.[{missing[0]}]'" if missing else ""


def _keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every setting in Hydra's dotted form."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _keys(info.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}"
