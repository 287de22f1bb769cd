"""Each file imports only from its own room or from rooms to its left."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

ROOMS = ["niels_gpt", "config", "artifacts", "cli", "loop", "report", "hardware", "sweep", "run", "bench"]
ROOMS += ["commands", "scripts", "hydra_plugins"]
PATHS = [path for top in ("niels_gpt", "train", "scripts", "hydra_plugins") for path in (ROOT / top).rglob("*.py")]
WITHOUT_TORCH = ("config", "cli", "report", "sweep")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "train" and len(parts) > 1 else parts[0]


def imports() -> Iterator[tuple[str, str]]:
    """Every import of the product, as the importing and the imported module."""
    for path in PATHS:
        module = module_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)


def test_rooms_import_only_from_the_left() -> None:
    ours = [(module, imported) for module, imported in imports() if imported.startswith(("niels_gpt.", "train."))]
    assert len(ours) > 300
    to_the_right = [pair for pair in ours if ROOMS.index(room(pair[1])) > ROOMS.index(room(pair[0]))]
    assert to_the_right == [("niels_gpt.__main__", "train.commands.program.main")]


def test_hydra_ends_at_its_rooms() -> None:
    users = {module for module, imported in imports() if imported.split(".")[0] in ("hydra", "omegaconf")}
    allowed = {"config", "sweep", "commands", "hydra_plugins"}
    assert {room(module) for module in users} <= allowed


def test_help_and_refusals_never_wait_for_torch() -> None:
    modules = [name for name in map(module_of, PATHS) if room(name) in WITHOUT_TORCH]
    code = f"import sys, niels_gpt, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert len(modules) > 20 and subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
