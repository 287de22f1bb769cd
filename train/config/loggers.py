"""The programs that a run can log to, each an extra of this project."""

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import AfterValidator

from niels_gpt.config import Several

LoggerName = Literal["trackio", "tensorboard", "wandb", "mlflow"]


def require_installed(names: tuple[LoggerName, ...]) -> tuple[LoggerName, ...]:
    """Return the names; ValueError if one has no package. A folder wandb/, as wandb makes, is none."""
    for name in names:
        if (spec := find_spec(name)) is None or spec.origin is None:
            raise ValueError(f"{name} is not installed; pip install 'niels_gpt[{name}]'")
    return names


Loggers = Annotated[Several[LoggerName], AfterValidator(require_installed)]
