"""The Hydra door: composes a config, checks it, carries out the run."""

import _root  # noqa: F401  isort: skip
import hydra
from omegaconf import DictConfig

from train.cli import command, deferred_signals, exit_codes
from train.config import load_plan
from train.structured import register

register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Carry out the plan and return the last phase's validation loss, which sweepers minimise."""
    with exit_codes():
        plan = load_plan(cfg)
        with deferred_signals():  # torch is imported only now: help and config errors need not wait for it
            from train.run import run

        return run(plan)[-1].best_val_loss


if __name__ == "__main__":
    command(main)
