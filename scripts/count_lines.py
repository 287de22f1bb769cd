"""Count the lines and files of each room, of the product and the tests."""

import _root  # noqa: F401  isort: skip
from collections.abc import Iterable
from pathlib import Path

from train.cli.output import format_table

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("niels_gpt", "train", "scripts", "hydra_plugins")


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
    print(format_table(rows, right=(1, 2)), end="")


if __name__ == "__main__":
    main()
