"""Turn an older JSON config into conf/experiment/NAME.yaml."""

import _root  # noqa: F401  isort: skip
from pathlib import Path

from niels_gpt.errors import ConfigError
from niels_gpt.storage import naming
from train.cli.command import Parser, command
from train.config.legacy import EXPERIMENTS, experiment_yaml, plan_from_json, way_to_run


def main() -> None:
    """Write the experiment; an existing one is never overwritten."""
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument(
        "--to", type=Path, default=EXPERIMENTS, help="folder for the YAML (default conf/experiment)"
    )
    options = parser.parse_args()
    if not options.to.is_dir():
        raise ConfigError(f"--to {options.to} is not a folder", "make it, or leave --to out")
    plan = plan_from_json(options.json)
    target, content = options.to / f"{plan[0].name}.yaml", experiment_yaml(options.json)
    if target.exists():
        raise ConfigError(f"{target} is there already", "rename the JSON file, or delete the experiment")
    with naming(target):
        target.write_text(content, encoding="utf-8")
    print(f"wrote {target}; {way_to_run(target)}")
    for source in dict.fromkeys(source for cfg in plan for source in cfg.data.sources):
        print(f"source {source.name}: older configs knew it by name; it now reads {', '.join(source.files)}")
    for cfg in plan:
        if not cfg.data.sources:
            print(f"{cfg.phase}: no sources are named; it now reads what comes with Python (data=pydocs)")


if __name__ == "__main__":
    command(main)
