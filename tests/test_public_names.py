"""The names that the library gives, and what importing it costs."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

import niels_gpt

SOURCE = ast.parse((ROOT / "niels_gpt" / "__init__.py").read_text(encoding="utf-8"))
TYPED = {  # what type checkers see
    alias.name: node.module
    for node in ast.walk(SOURCE)
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("niels_gpt.")
    for alias in node.names
}


def test_each_public_name_is_what_type_checkers_see() -> None:
    assert set(niels_gpt.__all__) == TYPED.keys()
    for name, module in TYPED.items():
        assert getattr(niels_gpt, name) is getattr(import_module(module), name), name


def test_torch_is_not_imported_before_a_name_needs_it() -> None:
    code = (
        "import sys, niels_gpt\nassert 'GPT' in dir(niels_gpt) and niels_gpt.ModelCfg and niels_gpt.__version__\n"
    )
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], cwd=ROOT, check=True)


def test_a_name_that_the_library_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'niels_gpt' has no attribute 'Gpt'"):
        _ = niels_gpt.Gpt
