"""Explain the overrides that Hydra refuses."""

import re
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from niels_gpt.config import SourceCfg
from train.config.plan import ComposedCfg
from train.config.suggest import CONF, did_you_mean, format_value, list_settings

MAX_LINE = 200  # characters of a line of Hydra's
INTERNALS = ("full_key:", "object_type=", "reference_type=", "Config search", "provider=", "See https:")
EXTRAS = ("joblib", "submitit", "ray", "optuna")  # of pyproject.toml: launchers and sweepers of other packages
Refusal = (HydraException, OmegaConfBaseException)


def explain_refusal(error: BaseException) -> str:
    """Return one line that names the setting Hydra or OmegaConf refuses."""
    if nameless := [word for word in sys.argv[1:] if re.match(r"[+~]*=", word)]:  # Hydra's message lacks it
        return f"{format_value(nameless[0])}: not a setting=value"
    if isinstance(error, OverrideParseException):
        reason = error.__cause__ or "not a setting=value; quote text with special characters: 'dir=\"a, b\"'"
        return f"{format_value(error.override)}: {format_value(reason, MAX_LINE)}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing(error.missing_cfg_file, error.options)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    if unknown := re.search(r"Key '.*' not in '(\w+)Node'\s+full_key: (\S+)", text):
        return _explain_unknown(unknown[1], unknown[2], text)
    lines = dict.fromkeys(line.strip().rstrip(".:") for line in text.splitlines())
    message = "; ".join(format_value(line, MAX_LINE) for line in lines if line and not line.startswith(INTERNALS))
    key = str(getattr(cause, "full_key", None) or "")
    message += f"; write a list as '{key}=[...]'" if "ListConfig" in message else ""
    return message if key in message else f"{format_value(key)}: {message}"


def _explain_missing(config: str, options: Sequence[str] | None) -> str:
    group, _, option = config.rpartition("/")
    if options:
        asked, choices = f"{format_value(group)}={format_value(option)}", ", ".join(options)
        return f"{asked} is not an option{did_you_mean(option, options)}; choose from {choices}"
    extra = option.partition("_")[0]  # submitit_slurm comes with submitit
    install = f"; install it with pip install -e '.[{extra}]'" if extra in EXTRAS else ""
    return f"there is no config {format_value(config)}{install}"


def _explain_unknown(node: str, key: str, text: str) -> str:
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    known = SourceCfg.model_fields if node == "SourceCfg" else [*list_settings(ComposedCfg), *groups]
    match = re.match(r"(?:Could not override|In) '(.*?)'", text)
    place = match[1] if match else ""  # an override, or the name of a config file
    key = place if place.startswith(key) else key  # of trian.B, OmegaConf names trian alone
    prefix = "" if key.startswith(place) else f"{format_value(place)}: "
    return f"{prefix}{format_value(key)} is unknown{did_you_mean(key, known)}"
