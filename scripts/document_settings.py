"""Write docs/settings.md: every setting of the schema, and every group of conf/ with its options."""

import _root  # noqa: F401  isort: skip
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from train.cli.command import Parser, run_command
from train.config.load import compose_run
from train.config.plan import ComposedCfg
from train.config.suggest import CONF

PAGE = CONF.parent / "docs" / "settings.md"
KINDS = {"string": "text", "array": "list", "boolean": "`true`, `false`"}
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
HEAD = """# Settings

<!-- Written by scripts/document_settings.py: change the schema or conf/, then run it again. -->
Write a setting as `name=value` and a list as `'name=[a,b]'`; choose an option of a group as `group=option`. The
command line wins over an experiment or a sweep, those win over the other groups, and the groups over the defaults
below. [Settings of SFT](first-run.md#settings-of-sft) start with `sft.`."""


def main() -> None:
    """Write the page."""
    Parser(description=__doc__).parse_args()
    PAGE.write_text(render_page(), encoding="utf-8")


def render_page() -> str:
    """Return the page as Markdown; the defaults are those of a run without overrides."""
    run = compose_run([])
    defaults = {name: info.default for name, info in ComposedCfg.model_fields.items()}
    lines = [HEAD, "\n## A run\n", *_list_settings("", ComposedCfg, defaults)]
    for section, values in (("model", run.model), ("data", run.data), ("train", run.train)):
        lines += [f"\n## `{section}`\n", *_list_settings(f"{section}.", type(values), values.model_dump())]
    lines.append("\n## Groups")
    for group in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        lines += [f"\n### `{group.name}`\n", "| option | |", "|---|---|"]
        for path in sorted(group.glob("*.yaml")):
            comment = re.search(r"^# (?!@package)(.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            link = f"[`{path.stem}`](../conf/{group.name}/{path.name})"
            lines.append(f"| {link} | {comment[1] if comment else ''} |")
    return "\n".join(lines) + "\n"


def _list_settings(prefix: str, schema: type[BaseModel], defaults: dict[str, Any]) -> Iterator[str]:
    yield from ("| setting | default | values | |", "|---|---|---|---|")
    for name, info in schema.model_json_schema()["properties"].items():
        if "description" in info:  # the sections of a run have none
            default = json.dumps(defaults[name]).replace('"', "") or "''"
            yield f"| `{prefix}{name}` | `{default}` | {_describe_values(info)} | {info['description']} |"


def _describe_values(info: dict[str, Any]) -> str:
    """Return the values that a setting may have, from its JSON schema."""
    if "anyOf" in info:
        return " or ".join(map(_describe_values, info["anyOf"]))
    if "enum" in info:
        return ", ".join(f"`{value}`" for value in info["enum"])
    limits = [f"{word} {info[key]:,.10g}" for key, word in LIMITS.items() if key in info]
    return " ".join([KINDS.get(info["type"], info["type"]), *limits])


if __name__ == "__main__":
    run_command(main)
