"""Turn an older JSON config into conf/experiment/NAME.yaml."""

from pathlib import Path

from train.cli.command import Parser
from train.cli.output import require_new_file
from train.config.legacy import format_experiment, plan_from_json
from train.config.suggest import CONF

TO = "folder to write to (default: conf/experiment); any other must be named experiment, for --config-dir"


def main() -> None:
    """Write the experiment without overwriting one."""
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=Path("conf", "experiment"), help=TO)
    options = parser.parse_args()
    plan = plan_from_json(options.json)
    name = f"{plan[0].name}.yaml"
    require_new_file(str(CONF / "experiment" / name))  # an experiment of niels_gpt, which Hydra would take instead
    options.to.mkdir(parents=True, exist_ok=True)
    target = require_new_file(str(options.to / name))
    target.write_text(format_experiment(options.json), encoding="utf-8")
    print(f"wrote {target}; choose it with experiment={target.stem}")
    for source in dict.fromkeys(source for cfg in plan for source in cfg.data.sources):
        print(f"source {source.name}: older configs give only its name; it now reads {', '.join(source.files)}")
