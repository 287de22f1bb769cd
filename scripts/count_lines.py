"""Count the lines and files of each room, of the product, the tests and the core path."""

import _root  # noqa: F401  isort: skip
from collections.abc import Iterable
from pathlib import Path

from train.cli.output import format_table

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("niels_gpt", "train", "scripts", "hydra_plugins")
CORE = [
    *("train/config/schema.py", "train/config/plan.py", "train/config/load.py", "train/run/runner.py"),
    *("train/loop/steps.py", "train/loop/amp.py", "niels_gpt/model/gpt.py", "niels_gpt/model/blocks.py"),
    "niels_gpt/loss.py",
]


def count_lines(name: str, paths: Iterable[Path]) -> tuple[str, str, str]:
    """Return a row: name, lines, and files besides __init__."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return (name, f"{sum(lines.values()):,}", str(sum(path.name != "__init__.py" for path in lines)))


def main() -> None:
    """Print the figures."""
    product = [path for top in PRODUCT for path in (ROOT / top).rglob("*.py")]
    rooms = sorted({path.parent for path in product if path.name != "__init__.py"})
    rows = [("room", "lines", "files")]
    rows += [count_lines(str(room.relative_to(ROOT)), room.glob("*.py")) for room in rooms]
    rows += [count_lines("product", product), count_lines("tests", (ROOT / "tests").rglob("*.py"))]
    rows += [count_lines("core path", map(ROOT.joinpath, CORE))]
    print(format_table(rows, right=(1, 2)), end="")


if __name__ == "__main__":
    main()
