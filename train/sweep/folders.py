"""Name the folders of a sweep's jobs: a number and the swept settings, such as 03-B8-accum_steps2."""

import re
from collections.abc import Sequence
from pathlib import Path

from train.artifacts.job_record import read_job

MAX_NAME = 96  # characters
UNNAMED = {  # settings that do not make another job
    *("name", "dir", "sweep", "resume", "objective", "memory_budget_gb"),
    *("data.cache_dir", "train.log_every", "train.keep_last", "train.max_minutes"),
}


class JobFolders:
    """Hydra's resolver `job_folder`. Hydra also hands it to the workers of other launchers."""

    def __init__(self, swept: Sequence[str]) -> None:
        """Name folders by the settings `swept`, or by all overrides if there are none."""
        self._swept = set(swept)
        self._names: dict[tuple[str, ...], str] | None = None  # by overrides

    def __call__(self, sweep: str, index: int, overrides: Sequence[str]) -> str:
        """Return the folder that a job has, whatever its name; a new one has its index + 1, or the next number."""
        if self._names is None:  # only now: another worker may have made some since
            folders = sorted(Path(sweep).glob("*/"))
            self._names = {_identify(job.overrides): path.name for path in folders if (job := read_job(path))}
            self._taken = {parse_number(path.name) or 0 for path in folders}
        if (identity := _identify(overrides)) not in self._names:
            label = format_label([word for word in overrides if _key(word) in self._swept] or identity)
            number = max(self._taken) + 1 if index + 1 in self._taken else index + 1
            self._taken.add(number)
            self._names[identity] = f"{number:02d}-{label}"[:MAX_NAME].rstrip("._-")
        return self._names[identity]


def parse_number(folder: str) -> int | None:
    """Return the number at the start of a folder's name."""
    match = re.match(r"(\d+)(?:-|$)", folder)
    return int(match[1]) if match else None


def format_label(overrides: Sequence[str]) -> str:
    """Return overrides as text that is safe in a shell and on Hydra's command line; floats get three digits."""
    parts = []
    for word in overrides:
        value = word.partition("=")[2]
        try:
            value = value if value.isdigit() else f"{float(value):.3g}".replace("+", "")
        except ValueError:
            value = f"_{value}"
        parts.append(re.sub(r"\b(train|model|data)\.", "", _key(word)) + value)
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(parts))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _identify(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(word for word in overrides if _key(word) not in UNNAMED))
