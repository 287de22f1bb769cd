"""Turns an older JSON config into conf/experiment/NAME.yaml, to go on with it under Hydra."""

import _root  # noqa: F401  isort: skip
import argparse
from pathlib import Path

from niels_gpt.errors import ConfigError
from train.cli import command
from train.legacy import plan_from_json
from train.legacy_experiment import experiment_yaml

EXPERIMENTS = Path(__file__).resolve().parent.parent / "conf" / "experiment"


def main() -> None:
    """Write the experiment; an existing one is never overwritten."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument(
        "--to", type=Path, default=EXPERIMENTS, help="folder for the YAML (default conf/experiment)"
    )
    options = parser.parse_args()
    plan = plan_from_json(options.json)
    target = options.to / f"{plan[0].name}.yaml"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(experiment_yaml(options.json))
    except FileExistsError:
        raise ConfigError(f"{target} is there already", "rename the JSON file, or delete the experiment") from None
    print(f"wrote {target}; run it with: python scripts/train.py experiment={target.stem}")
    for source in dict.fromkeys(source for cfg in plan for source in cfg.data.sources):
        print(f"source {source.name}: older configs knew it by name; it now reads {', '.join(source.files)}")


if __name__ == "__main__":
    command(main)
