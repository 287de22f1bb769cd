"""Turn an older JSON config into conf/experiment/NAME.yaml."""

from pathlib import Path

from niels_gpt.errors import ConfigError
from train.cli.command import Parser
from train.config.legacy import describe_sources, format_experiment, plan_from_json
from train.config.suggest import CONF

TO = "folder to write to (default: conf/experiment); any other must be named experiment, for --config-dir"


def main() -> None:
    """Write the experiment without overwriting one."""
    parser = Parser(description=__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=Path("conf", "experiment"), help=TO)
    parser.add_argument("--name", help="name of the experiment and its runs (default: the file's)")
    options = parser.parse_args()
    plan = plan_from_json(options.json, options.name)
    target = options.to / f"{plan[0].name}.yaml"
    for path in (CONF / "experiment" / target.name, target):  # Hydra would take niels_gpt's own instead
        if path.exists():
            raise ConfigError(f"{path} already exists", "choose another name with --name")
    options.to.mkdir(parents=True, exist_ok=True)
    target.write_text(format_experiment(options.json, options.name), encoding="utf-8")
    print(f"wrote {target}; choose it with experiment={target.stem}")
    print(*describe_sources(plan), sep="\n")
