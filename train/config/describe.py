"""Describe settings, the values they allow, and the options of groups: for --help, errors and docs/settings.md."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from string import Template
from textwrap import wrap
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from train.config.plan import ComposedCfg
from train.config.suggest import CONF, list_settings

WIDTH, COLUMN = 80, 26  # of the help, and where its second column starts
KINDS = {"integer": "an integer", "number": "a number", "string": "text", "object": "a mapping of settings"}
ITEMS = {"string": "text", "number": "numbers"}
NAME = "up to 64 letters, digits, '.', '_' or '-', not starting with '.'"
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
Groups = dict[str, dict[str, str]]


def list_groups(folders: Iterable[Path]) -> Groups:
    """Return the options of each group in these config folders, and the first line of comment of each."""
    groups: Groups = {}
    for path in sorted(
        path for folder in folders for path in folder.glob("*/*.yaml") if path.parent.name != "hydra"
    ):
        comment = re.search(r"^# (?!@package)(.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        groups.setdefault(path.parent.name, {})[path.stem] = comment[1] if comment else ""
    return groups


def describe_setting(name: str) -> tuple[str, str]:
    """Return the meaning of a setting, by its dotted name, and the values it allows.

    KeyError if there is no such setting.
    """
    info = schema = _load_schema()
    for part in name.split("."):
        info = (info.get("items") or info["prefixItems"][0]) if part.isdecimal() else info["properties"][part]
        info = schema["$defs"].get(info.get("$ref", "").rpartition("/")[2], info)
    return info.get("description", ""), _describe_values(info)


@cache
def _load_schema() -> dict[str, Any]:
    return ComposedCfg.model_json_schema()


def _describe_values(info: dict[str, Any]) -> str:
    if "anyOf" in info:  # something or null
        return ", or ".join(map(_describe_values, info["anyOf"]))
    if choices := info.get("enum", ["true", "false"] if info["type"] == "boolean" else []):
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    if "pattern" in info:
        return NAME
    if info["type"] == "array":
        item = info.get("items") or info["prefixItems"][0]
        count = f"{len(info['prefixItems'])} " if "prefixItems" in info else ""
        kind = _describe_values(item) if "enum" in item else ITEMS.get(item.get("type"), "mappings")
        return f"a list of {count}{kind}"
    limits = " and ".join(f"{word} {info[key]:,.10g}" for key, word in LIMITS.items() if key in info)
    limits = "not empty" if info.get("minLength") else re.sub(r"at least (.*) and at most", r"\1 to", limits)
    return ", ".join(filter(None, [KINDS.get(info["type"], info["type"]), limits]))


def print_help(overrides: list[str]) -> None:
    """Print what Hydra's --help prints, but fast: Hydra also lists the groups of every plugin, unused here."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    print(Template(cfg.hydra.help.template).substitute())


def format_groups(*, _root_: DictConfig) -> str:
    """Return a line or more for each option of each group, and what it means."""
    folders = [Path(source.path) for source in _root_.hydra.runtime.config_sources if source.schema == "file"]
    return _join_sections(
        (line for option, meaning in options.items() for line in _wrap_row(f"{group}={option}", meaning))
        for group, options in list_groups(folders).items()
    )


def format_settings(*, _root_: DictConfig) -> str:
    """Return a line or more for each setting, with its composed value, its meaning and the values it allows."""
    sections: dict[str, list[str]] = {}
    for name in list_settings(ComposedCfg):
        if not name.startswith("sft."):
            value = OmegaConf.select(_root_, name, default="")  # --cfg hydra has no settings
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            text = json.dumps(plain).replace(" ", "").replace('"', "")
            meaning, values = describe_setting(name)
            sections.setdefault(name.rpartition(".")[0], []).extend(
                _wrap_row(f"{name}={text}", f"{meaning} ({values})")
            )
    return _join_sections(sections.values())


def _wrap_row(left: str, right: str) -> Iterator[str]:
    """Yield the lines of a row of two columns; a long left cell has a line of its own."""
    left, right_lines = f"  {left} ", wrap(right, WIDTH - COLUMN, break_on_hyphens=False) or [""]
    if len(left) > COLUMN:
        yield left.rstrip()
        left = ""
    for line in right_lines:
        yield f"{left:<{COLUMN}}{line}".rstrip()
        left = ""


def _join_sections(sections: Iterable[Iterable[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in sections).replace("$", "$$")  # Hydra fills in a Template
