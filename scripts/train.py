"""Train, as `niels_gpt train` does: the command for a clone."""

import _root  # noqa: F401  isort: skip
import os
import sys

from train.commands.program import main

if __name__ == "__main__":
    os.environ["NIELS_TRAIN_COMMAND"] = "python scripts/train.py"  # for hints: train.config.suggest reads it
    main(["train", *sys.argv[1:]])
