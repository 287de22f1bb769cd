"""Let Hydra find the user's own configs in ./conf, such as conf/experiment/mine.yaml."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

# Not from train: Hydra imports all plugins in other programs too, where `train` may be a module of theirs.
CONF = Path(__file__).resolve().parent.parent.parent / "conf"


class OwnConfigs(SearchPathPlugin):
    """Search ./conf after all others, those of --config-dir too: it adds options and replaces none."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add ./conf if it is there, for niels_gpt only."""
        ours = any(Path(one.path.removeprefix("file://")) == CONF for one in search_path.get_path())
        own = Path("conf").resolve()
        if ours and own.is_dir() and own != CONF:
            search_path.append("schema", "structured://")  # Hydra adds it too late: ./conf would come before it
            search_path.append("niels_gpt", f"file://{own}")
