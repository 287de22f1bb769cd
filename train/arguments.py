"""The command line of a script without Hydra: its faults are told as all others are."""

import argparse
from typing import NoReturn

from niels_gpt.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """A parser whose refusals are `error:` and `hint:` lines and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise ConfigError(message, f"python scripts/{self.prog} --help shows what it takes")
