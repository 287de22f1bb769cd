"""Turn an older JSON config into conf/experiment/NAME.yaml."""

import _root  # noqa: F401  isort: skip
from pathlib import Path

from train.cli.command import Parser, run_command
from train.cli.output import require_new_file
from train.config.legacy import format_experiment, plan_from_json
from train.config.suggest import CONF

TO = "folder to write to (default: conf/experiment); any other must be named experiment, for --config-dir"


def main() -> None:
    """Write the experiment without overwriting one."""
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=CONF / "experiment", help=TO)
    options = parser.parse_args()
    plan = plan_from_json(options.json)
    target = require_new_file(str(options.to / f"{plan[0].name}.yaml"))
    target.write_text(format_experiment(options.json), encoding="utf-8")
    print(f"wrote {target}; choose it with experiment={target.stem}")
    for source in dict.fromkeys(source for cfg in plan for source in cfg.data.sources):
        print(f"source {source.name}: older configs give only its name; it now reads {', '.join(source.files)}")


if __name__ == "__main__":
    run_command(main)
