"""Turn an older JSON config into conf/experiment/NAME.yaml."""

import _root  # noqa: F401  isort: skip
from pathlib import Path

from niels_gpt.errors import ConfigError
from niels_gpt.storage import add_file_name
from train.cli.command import Parser, run_command
from train.config.legacy import format_experiment, plan_from_json
from train.config.suggest import CONF

TO = "folder to write to (default conf/experiment); another must be named experiment, for --config-dir"


def main() -> None:
    """Write the experiment without overwriting one."""
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=CONF / "experiment", help=TO)
    options = parser.parse_args()
    if not options.to.is_dir():
        raise ConfigError(f"--to {options.to} is not a folder", "create it, or omit --to")
    plan = plan_from_json(options.json)
    target, content = options.to / f"{plan[0].name}.yaml", format_experiment(options.json)
    try:
        with add_file_name(target), target.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{target} already exists", "rename the JSON file, or delete the experiment") from None
    print(f"wrote {target}; choose it with experiment={target.stem}")
    for source in dict.fromkeys(source for cfg in plan for source in cfg.data.sources):
        print(f"source {source.name}: older configs only name it; it now reads {', '.join(source.files)}")


if __name__ == "__main__":
    run_command(main)
