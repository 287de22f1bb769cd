"""What no config may do, whoever wrote it: run code, read the environment, write beside the run folder.

Hydra makes objects from any `_target_` in its own section before a task begins, so every config that it composes,
and every file that it composes it from, comes through here first; train/harm.py knows what such a section may say.
"""

import sys
from collections.abc import Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from niels_gpt.errors import ConfigError, NielsError
from train.harm import harm
from train.known import shown
from train.plain_yaml import require_plain

CONF = Path(__file__).resolve().parent.parent / "conf"
LONGEST = 16 << 10  # characters of all overrides together: Hydra's parser takes a second for them
DEEPEST = 32  # brackets within one another


@cache  # once: what is wrapped stays wrapped
def guard() -> None:
    """Let everything that Hydra composes come through here."""
    OmegaConf.register_new_resolver("oc.env", _no_environment, replace=True)
    sys.modules["hydra.main"]._get_rerun_conf = _no_pickle  # type: ignore[attr-defined]
    compose, load = ConfigLoaderImpl.load_configuration, ConfigRepository.load_config

    @wraps(compose)
    def guarded(
        self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *args: Any, **kw: Any
    ) -> Any:
        _require_bounded(overrides)
        try:
            config = compose(self, config_name, overrides, *args, **kw)
        except (HydraException, OmegaConfBaseException, NielsError):
            raise
        except Exception as error:  # Hydra's own assertions, and what it does not expect
            said = "" if isinstance(error, AssertionError) else str(error)
            raise ConfigCompositionException(said or "this is no setting=value") from error
        _require_harmless(config, overrides)
        return config

    @wraps(load)
    def plain(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            path = Path(source.path) / source._normalize_file_name(config_path)
            _require_plain_once(path, path.stat().st_mtime_ns, path.stat().st_size)
        return load(self, config_path)

    ConfigLoaderImpl.load_configuration = guarded  # type: ignore[method-assign]
    ConfigRepository.load_config = plain  # type: ignore[method-assign]


@cache
def _require_plain_once(path: Path, _changed: int, _size: int) -> None:
    """Look at a file once, and again when it is another: a sweep composes the same ones for each job."""
    require_plain(path)


def _no_pickle(path: str, *_: Any) -> None:
    raise ConfigError(f"{path}: a pickled config could run code", "give settings, or an experiment, instead")


def _no_environment(*_: Any) -> None:
    raise ConfigError(
        "settings take nothing from the environment: it would be written into the run's files",
        "write the value itself, as 'data.files=[notes/*.md]'",
    )


def _require_bounded(overrides: list[str]) -> None:
    """Refuse overrides that would take Hydra's parser minutes, or more stack than there is."""
    if (length := sum(map(len, overrides))) > LONGEST:
        raise ConfigError(
            f"the settings on the command line are {length} characters long, more than {LONGEST}",
            "name files by a glob in quotes, as 'data.files=[notes/**/*.md]', or write an experiment",
        )
    for override in overrides:
        depth = deepest = 0
        for character in override:
            depth += (character in "[{(") - (character in ")}]")
            deepest = max(deepest, depth)
        if deepest > DEEPEST:
            raise ConfigError(
                f"{shown(override)}: {deepest} brackets within one another, more than {DEEPEST}",
                "write an experiment in conf/experiment/ for what is so deep",
            )


def _require_harmless(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a composed config whose section `hydra` names code, variables or files that are not its own.

    Raises:
        ConfigError: a line for each such setting.
    """
    hydra = config._get_node("hydra")
    if not isinstance(hydra, DictConfig):
        return
    if broken := [f"{shown(path)}={shown(value)}: {why}" for path, value, why in harm(hydra, overrides)]:
        raise ConfigError("\n".join(broken), "Hydra's own settings choose among what this project ships")
