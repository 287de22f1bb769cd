"""Write docs/settings.md: every setting of the schema, and every group of conf/ with its options."""

import _root  # noqa: F401  isort: skip
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from train.cli.command import Parser, run_command
from train.config import compose_plan
from train.config.describe import describe_setting, list_groups
from train.config.plan import ComposedCfg
from train.config.suggest import CONF

PAGE = CONF.parent / "docs" / "settings.md"
HEAD = """# Settings

<!-- Written by scripts/document_settings.py: change the schema or conf/, then run it again. -->
Write a setting as `name=value` and a list as `'name=[a,b]'`; choose an option of a group as `group=option`. The
command line overrides an experiment or a sweep, these override the other groups, and all override the defaults
below. [Settings of SFT](first-run.md#settings-of-sft) start with `sft.`."""


def main() -> None:
    """Write the page."""
    Parser(description=__doc__).parse_args()
    PAGE.write_text(render_page(), encoding="utf-8")


def render_page() -> str:
    """Return the page as Markdown; the defaults are those of a run without overrides."""
    run = compose_plan([])[0]
    defaults = {name: info.default for name, info in ComposedCfg.model_fields.items()}
    lines = [HEAD, "\n## A run\n", *_list_settings("", ComposedCfg, defaults)]
    for section, values in (("model", run.model), ("data", run.data), ("train", run.train)):
        lines += [f"\n## `{section}`\n", *_list_settings(f"{section}.", type(values), values.model_dump())]
    lines.append("\n## Groups")
    for group, options in list_groups([CONF]).items():
        lines += [f"\n### `{group}`\n", "| option | |", "|---|---|"]
        lines += [f"| [`{option}`](../conf/{group}/{option}.yaml) | {text} |" for option, text in options.items()]
    return "\n".join(lines) + "\n"


def _list_settings(prefix: str, schema: type[BaseModel], defaults: dict[str, Any]) -> Iterator[str]:
    yield from ("| setting | default | values | |", "|---|---|---|---|")
    for name, info in schema.model_fields.items():
        if info.description:  # the sections of a run have none
            default = json.dumps(defaults[name]).replace('"', "") or "''"
            meaning, values = describe_setting(prefix + name)
            yield f"| `{prefix}{name}` | `{default}` | {values} | {meaning} |"


if __name__ == "__main__":
    run_command(main)
