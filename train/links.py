"""That a run writes only within its folder: a link in it would lead elsewhere, whoever put it there."""

import os
from pathlib import Path

from niels_gpt.errors import ConfigError

WRITTEN = ("", "pretrain", "sft", ".hydra")  # folders of a run that something is written to


def require_no_links(run: Path) -> None:
    """Refuse a run folder that has a link where a run writes; the folder itself may be reached through one.

    Raises:
        ConfigError: which link it is.
    """
    for folder in (run / name for name in WRITTEN):
        if folder.is_dir():
            for entry in os.scandir(folder):
                if entry.is_symlink():
                    raise ConfigError(
                        f"{entry.path} leads to {os.readlink(entry.path)}, and a run writes in its folder alone",
                        "remove the link, or choose another name=...",
                    )
