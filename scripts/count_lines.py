"""Count the lines, files and functions of each room, of the product, the tests and the core path."""

import _root  # noqa: F401  isort: skip
import ast
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


def count(name: str, paths: Iterable[Path]) -> tuple[str, str, str, str]:
    """Return a row: name, lines, files besides __init__, and functions."""
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    functions = [
        node for text in texts.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    ]
    files = [path for path in texts if path.name != "__init__.py"]
    return (
        name,
        f"{sum(len(text.splitlines()) for text in texts.values()):,}",
        str(len(files)),
        str(len(functions)),
    )


def main() -> None:
    """Print the figures."""
    product = sorted(path for top in PRODUCT for path in (ROOT / top).rglob("*.py"))
    rooms = sorted({path.parent for path in product if path.name != "__init__.py"})
    rows = [("room", "lines", "files", "functions")]
    rows += [count(str(room.relative_to(ROOT)), room.glob("*.py")) for room in rooms]
    rows += [count("product", product), count("tests", (ROOT / "tests").rglob("*.py"))]
    rows += [count("core path", map(ROOT.joinpath, CORE))]
    print(format_table(rows, right=(1, 2, 3)), end="")


if __name__ == "__main__":
    main()
