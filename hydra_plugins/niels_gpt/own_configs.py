"""Let Hydra find the user's own configs in ./conf, such as conf/experiment/mine.yaml."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OwnConfigs(SearchPathPlugin):
    """Search ./conf after the configs of niels_gpt: it adds options and replaces none."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add ./conf if it is there."""
        from train.config.suggest import CONF  # here: Hydra imports all plugins, in other programs too

        own = Path("conf").resolve()
        if own.is_dir() and own != CONF:
            search_path.append("niels_gpt", f"file://{own}")
