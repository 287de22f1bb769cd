"""Explain the overrides that Hydra refuses."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from niels_gpt.config import SourceCfg
from niels_gpt.errors import first_line
from train.config.describe import describe_setting
from train.config.plan import ComposedCfg
from train.config.suggest import CONF, did_you_mean, format_value, list_settings

MAX_LINE = 200  # characters of a line of Hydra's
INTERNALS = ("full_key:", "object_type=", "reference_type=", "Config search", "provider=", "See https:")
EXTRAS = ("joblib", "submitit", "ray", "optuna")  # of pyproject.toml: launchers and sweepers of other packages
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTION = "the name of an option"
Refusal = (HydraException, OmegaConfBaseException)


def explain_refusal(error: BaseException) -> str:
    """Return one line that names the setting Hydra or OmegaConf refuses."""
    if nameless := [word for word in sys.argv[1:] if re.match(r"[+~]*=", word)]:  # Hydra's message lacks it
        return f"{format_value(nameless[0])}: not of the form setting=value"
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing(error.missing_cfg_file, error.options)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        word, key = format_value(several[1]), format_value(several[1].partition("=")[0])
        quoted = f"a list as '{key}=[...]' and text with commas as '{key}=\"...\"'"
        return f"{word}: add -m to sweep over these values, or write {quoted}"
    if text.startswith("Config group override must be") and (odd := _find_odd_option()):
        return f"{format_value(odd)}: must be {OPTION}"
    if removal := re.match(r"Error merging override (~.*)", text):
        return f"{format_value(removal[1])}: a setting cannot be removed"
    if unknown := re.search(r"Key '.*' not in '(\w+)Node'\s+full_key: (\S+)", text):
        return _explain_unknown(unknown[1], unknown[2], text)
    found = re.search(r"full_key: (\S+)", text)
    key = re.sub(r"\[(\d+)\]", r".\1", found[1]) if found else ""
    if place := re.match(r"Error merging override (.*)|In '(.*?)'", text):
        with suppress(KeyError):  # Hydra's own settings
            _, values = describe_setting(f"data.sources.0.{key}" if "=SourceCfgNode" in text else key)
            where = format_value(place[1] or place[2])
            return f"{where}: {'' if where.startswith(f'{key}=') else f'{key} '}must be {values}"
    lines = dict.fromkeys(line.strip().rstrip(".:") for line in text.splitlines())
    message = "; ".join(format_value(line, MAX_LINE) for line in lines if line and not line.startswith(INTERNALS))
    return message if key in message else f"{format_value(key)}: {message}"


def _explain_syntax(error: OverrideParseException) -> str:
    word, key = format_value(error.override), format_value(error.override.partition("=")[0].lstrip("+"))
    if not re.match(r"[+~]*[\w/@:-]+(\.[\w-]+)*=", word):
        return f"{word}: not of the form setting=value"
    values = "text"
    with suppress(KeyError):  # a setting of Hydra
        values = OPTION if key.partition("@")[0] in GROUPS else describe_setting(key)[1]
    reason = format_value(first_line(error.__cause__)) if error.__cause__ else ""  # of a function such as int(...)
    if not values.startswith(("text", "a list")):
        return f"{word}: {reason or f'must be {values}'}"
    quoted = f"'{key}=[a, b]', and text with special characters, '{key}=\"a(b)\"'"
    return f"{word}: {reason or 'cannot be read'}; quote a list with spaces, {quoted}"


def _find_odd_option() -> str | None:
    """Return the word that chooses an option by null or a number: Hydra's message lacks it."""
    words = [word for word in sys.argv[1:] if re.match(rf"\+*({'|'.join(GROUPS)})([@/].*)?=", word)]
    parsed = OverridesParser.create().parse_overrides(words)
    return next((one.input_line for one in parsed if not isinstance(one.value(), str | list)), None)


def _explain_missing(config: str, options: Sequence[str] | None) -> str:
    group, _, option = config.rpartition("/")
    if options:
        asked, choices = f"{format_value(group)}={format_value(option)}", ", ".join(options)
        return f"{asked} is not an option; choose from {choices}{did_you_mean(option, options)}"
    extra = option.partition("_")[0]  # submitit_slurm comes with submitit
    install = f"; install it with pip install 'niels_gpt[{extra}]'" if extra in EXTRAS else ""
    return f"there is no config {format_value(config)}{install}"


def _explain_unknown(node: str, key: str, text: str) -> str:
    known = SourceCfg.model_fields if node == "SourceCfg" else [*list_settings(ComposedCfg), *GROUPS]
    match = re.match(r"(?:Could not override|In) '(.*?)'", text)
    place = match[1] if match else ""  # an override, or the name of a config file
    key = place if place.startswith(key) else key  # of trian.B, OmegaConf names trian alone
    prefix = "" if key.startswith(place) else f"{format_value(place)}: "
    return f"{prefix}{format_value(key)} is unknown{did_you_mean(key, known)}"
