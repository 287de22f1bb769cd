"""Run the program `niels_gpt` as `python -m niels_gpt`; the only file of the library that names train."""

import os
import sys

if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and sys.path[0] != os.path.dirname(os.path.dirname(__file__))
):
    del sys.path[0]  # the current folder, where a user's train.py would hide the package `train`

from train.commands.program import main

if __name__ == "__main__":
    main()
