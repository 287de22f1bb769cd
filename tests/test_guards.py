"""Two checks beyond ruff: the microbatch loop never reads the device, and torch.load states weights_only."""

import ast

import pytest
from conftest import ROOT

FOLDERS = ("niels_gpt", "train", "scripts", "hydra_plugins")
LOOP = "def optimizer_step():\n    for x in y:\n        loss = f(x)\n        loss.backward()\n        "


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def microbatch_loops(tree: ast.AST) -> list[ast.For]:
    """Return the loops of optimizer_step that go backward."""
    steps = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "optimizer_step"]
    loops = [node for step in steps for node in ast.walk(step) if isinstance(node, ast.For)]
    return [loop for loop in loops if "backward(" in ast.unparse(loop)]


def device_reads(tree: ast.AST) -> list[str]:
    """Return the calls in the microbatch loop that wait for the device: .item() and the like, or float(x)."""
    called = [ast.unparse(call.func) for loop in microbatch_loops(tree) for call in calls(loop)]
    waiting = (".item", ".tolist", ".cpu", ".numpy", ".synchronize")
    return [name for name in called if name.endswith(waiting) or name in ("float", "int", "bool")]


def unsafe_loads(tree: ast.AST) -> list[str]:
    """Return the calls of torch.load that do not write weights_only=True out."""
    loads = [call for call in calls(tree) if ast.unparse(call.func) in ("torch.load", "load")]
    return [ast.unparse(c) for c in loads if not any(ast.unparse(k) == "weights_only=True" for k in c.keywords)]


def test_the_source_keeps_both_rules() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}
    assert len(microbatch_loops(trees["train/loop/steps.py"])) == 1
    assert any("weights_only=True" in ast.unparse(tree) for tree in trees.values())
    assert [
        (path, found) for path, tree in trees.items() for found in device_reads(tree) + unsafe_loads(tree)
    ] == []


@pytest.mark.parametrize("line", ["total += loss.item()", "total += float(loss)", "losses.append(loss.cpu())"])
def test_a_read_of_the_device_in_the_loop_is_found(line: str) -> None:
    assert device_reads(ast.parse(LOOP + line))
    assert not device_reads(ast.parse(LOOP + "total += loss.detach()\n    return total.item()"))


@pytest.mark.parametrize("given", ["path", "path, weights_only=False", "path, weights_only=it", "path, **more"])
def test_a_load_that_could_run_code_is_found(given: str) -> None:
    assert unsafe_loads(ast.parse(f"torch.load({given})"))
    assert not unsafe_loads(ast.parse("torch.load(path, weights_only=True)"))
