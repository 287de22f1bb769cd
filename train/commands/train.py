"""Compose a config with Hydra, check it, and train; turn an older JSON config into an experiment."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from niels_gpt.errors import ConfigError
from train.cli.command import Parser, defer_signals, exit_on_error
from train.config import load_plan
from train.config.describe import print_help
from train.config.hydra_schema import register
from train.config.legacy import describe_sources, format_experiment, plan_from_json
from train.config.schema import RunCfg
from train.config.suggest import CONF
from train.sweep.callback import PlanCallback
from train.sweep.jobs import find_job

PATH_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--experimental-rerun")  # the next word is a path
TO = "folder to write to (default: conf/experiment); any other must be named experiment, for --config-dir"
log = logging.getLogger("niels_gpt")


def main() -> None:
    """Train, or print the help."""
    register()
    sys.argv[1:] = put_settings_first(sys.argv[1:])
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    only_help = len(words) < len(sys.argv) - 1 and not any(word.startswith(("-", "hydra")) for word in words)
    if only_help:
        print_help(words)
    else:
        train_composed()


def put_settings_first(words: list[str]) -> list[str]:
    """Return the words, settings first: Hydra refuses those that a flag separates from the others."""
    before = ["", *words]
    settings = {
        n
        for n, word in enumerate(words)
        if ("=" in word or word[:1] == "~") and word[:1] != "-" and before[n] not in PATH_FLAGS
    }
    return [words[n] for n in sorted(range(len(words)), key=lambda n: n not in settings)]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train_composed(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run the plan; in a sweep, return the objective for its sweeper."""
    if job := find_job(cfg):
        from train.sweep.in_process import run_job

        return run_job(job, carry_out)
    with exit_on_error():
        carry_out(PlanCallback.plan or load_plan(cfg, HydraConfig.get().overrides.task))
    return None


def carry_out(plan: list[RunCfg]) -> None:
    """Run the phases; torch is imported only now, so that help and config errors are fast."""
    log.info("%s: %s; loading torch", plan[0].dir, ", then ".join(cfg.phase for cfg in plan))
    with defer_signals():
        from train.run import run
    run(plan)


def run_import_json() -> None:
    """Turn an older JSON config into conf/experiment/NAME.yaml."""
    parser = Parser(description=run_import_json.__doc__)
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
