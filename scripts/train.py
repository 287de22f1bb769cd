"""Train, as `niels_gpt train` does: the command for a clone."""

import _root  # noqa: F401  isort: skip
import os
import sys

from train.commands.program import main
from train.config.suggest import TRAIN_VARIABLE

if __name__ == "__main__":
    os.environ[TRAIN_VARIABLE] = "python scripts/train.py"
    main(["train", *sys.argv[1:]])
