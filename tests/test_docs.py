"""Check the documentation: commands compose or parse; files, links, settings and tables are right."""

import argparse
import json
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from conftest import CONF, ROOT, Compose
from support.foreign_tokenizers import make_gpt2

from niels_gpt import errors
from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.model.gpt import GPT
from train.cli.command import Parser
from train.commands import program
from train.config import load_plan
from train.config.plan import ComposedCfg
from train.config.suggest import list_settings

PAGES = {path: path.read_text("utf-8") for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]}
FENCES = [
    (kind, dedent(body))
    for text in PAGES.values()
    for kind, body in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
]
PROSE = {path: re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S) for path, text in PAGES.items()}
INLINE = {" ".join(word.split()) for text in PROSE.values() for word in re.findall(r"`([^`]+)`", text)}
LINES = {line for kind, body in FENCES if kind == "sh" for line in body.splitlines() if not line.startswith("#")}
COMMANDS = sorted(
    LINES
    | {
        word
        for word in INLINE
        if "..." not in word and word.startswith(("python scripts/", "niels_gpt ", "make "))
    }
)
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
OWN = ("conf/experiment/old.yaml", "conf/experiment/mine.yaml")  # of the user
FLAGS = ("-m", "--help", "--cfg", "job")  # of Hydra


def page(name: str) -> str:
    return PAGES[ROOT / name]


class Parsed(Exception):
    """Raised with the options of a command in place of carrying it out."""


def parse(main: Callable[[], object], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("parse_args", "parse_intermixed_args"):

        def stop(parser: Parser, name: str = name) -> None:
            raise Parsed(getattr(argparse.ArgumentParser, name)(parser))

        monkeypatch.setattr(Parser, name, stop)
    monkeypatch.setattr(sys, "argv", ["a command", *arguments])
    with pytest.raises(Parsed) as caught:
        main()
    return caught.value.args[0]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes_or_parses(
    line: str, composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "gpt2/tokenizer.json" in line:  # the only file that the gate reads
        (tmp_path / "gpt2").mkdir()
        make_gpt2(tmp_path / "gpt2" / "tokenizer.json")
        monkeypatch.chdir(tmp_path)
    match [word for word in shlex.split(line) if not re.match("[A-Z_]+=", word)]:
        case ["make", target]:
            assert re.search(rf"^{target}:", MAKEFILE, re.M)
        case ["niels_gpt", "train", *overrides] | ["python", "scripts/train.py", *overrides]:
            presets = [word.replace("=", "/") for word in overrides if word.startswith("hydra/")]
            assert all((CONF / f"{preset}.yaml").exists() for preset in presets)
            plain = [word for word in overrides if word not in FLAGS and not word.startswith(("hydra/", "hydra."))]
            first = [re.sub(r"^([\w./]+=[\w.-]+),.*", r"\1", word) for word in plain if "interval(" not in word]
            assert load_plan(composed(*first))
        case ["python", script]:
            assert (ROOT / script).exists()
        case ["niels_gpt", "--help" | "--version"]:
            pass
        case ["niels_gpt", command, *arguments]:
            options = parse(pkgutil.resolve_name(program.COMMANDS[command][1]), arguments, monkeypatch)
            assert "overrides" not in options or load_plan(composed(*options.overrides))
        case ["source", path]:
            assert path == ".venv/bin/activate"
        case ["ruff" | "mypy" | "pytest", *arguments]:
            assert all((ROOT / word).exists() for word in arguments if "/" in word)
        case _:
            pytest.fail("nothing checks this command")


def test_there_are_commands_to_check_and_the_readme_is_short() -> None:
    assert len(COMMANDS) > 50 and {"make train", "make test"} <= LINES
    assert {kind for kind, _ in FENCES} == {"sh", "text", "json", "python", "yaml"}
    modes = {line.split()[2] for line in LINES if line.startswith("niels_gpt bench")}
    assert modes == {"race", "growth", "steady", "overhead", "spinning", "tokenize", "generate"}
    assert len(page("README.md").splitlines()) <= 150


def test_every_relative_link_leads_somewhere() -> None:
    for path, text in PROSE.items():
        for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            target = path.parent / link if link else path
            assert target.exists(), f"{path.name}: {link}"
            titles = re.findall(r"^#+ (.+)", PAGES.get(target.resolve(), ""), re.M)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert not anchor or anchor in slugs, f"{path.name}: {link}#{anchor}"


def test_every_file_extra_and_setting_that_is_named_exists() -> None:
    for name in {word for word in INLINE if re.match(r"(niels_gpt|train|tests|scripts|conf)/", word)}:
        assert "NAME" in name or (ROOT / name).exists() or name in OWN, name
    extras = {extra for word in INLINE for extra in re.findall(r"'niels_gpt\[(\w+)\]'", word)}
    assert extras and all(
        re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M) for extra in extras
    )
    named = {name for word in INLINE for name in re.findall(r"^'?((?:sft\.)?(?:train|data|model)\.\w+)", word)}
    patterns = {"train.X", "data.X", "sft.train.X", "sft.data.X", "train.log", "data.json", "model.safetensors"}
    assert len(named) > 30 and named - patterns <= set(list_settings(ComposedCfg))


def test_the_names_in_contributing_are_in_the_code() -> None:
    code = "".join(
        path.read_text("utf-8") for top in ("niels_gpt", "train") for path in (ROOT / top).rglob("*.py")
    )
    names = re.findall(r"`(\w*[A-Z_]\w*)(?:\.(\w+))?`", page("CONTRIBUTING.md"))
    assert len(names) > 8 and all(re.search(rf"\b{part}\b", code) for name in names for part in name)


def test_the_page_of_settings_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "document_settings.py"))
    assert script["render_page"]() == page("docs/settings.md"), "run scripts/document_settings.py"


def test_the_examples_in_python_are_python_and_the_notebook_runs(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [body for kind, body in FENCES if kind == "python" and compile(body, "docs", "exec")]
    loading = [example for example in examples if "niels_gpt.load(" in example]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    assert len(loading) > 1
    for example in loading:
        capsys.readouterr()
        exec(example, {})
        assert capsys.readouterr().out


def test_the_rows_of_json_are_read(tmp_path: Path) -> None:
    (rows,) = [body for kind, body in FENCES if kind == "json"]
    (tmp_path / "rows.jsonl").write_text(rows)
    source = SourceCfg(kind="jsonl", files=(str(tmp_path / "rows.jsonl"),))
    assert len([*local_files.read_documents(source)]) == 1 and len([*local_files.read_dialogues(source)]) == 6
    assert len(rows.splitlines()) == 7 and all(map(json.loads, rows.splitlines()))


def test_the_table_of_groups_names_every_group_and_option() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (`.+?) \|", page("docs/first-run.md"), re.M))
    assert rows.keys() == {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    for group in rows.keys() - {"experiment"}:
        assert set(re.findall(r"`(\w+)`", rows[group])) == {path.stem for path in (CONF / group).glob("*.yaml")}


def test_the_models_have_the_sizes_that_the_readme_says(composed: Compose) -> None:
    sizes = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) million", page("README.md"), re.M))
    assert sizes.keys() == {path.stem for path in (CONF / "model").glob("*.yaml")}
    for name, millions in sizes.items():
        with torch.device("meta"):
            count = GPT(load_plan(composed(f"model={name}"))[0].model).parameter_count()
        assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.NielsError)}
    table = page("docs/automation.md").partition("## Exit codes")[2].partition("##")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.M)
    assert codes | {0, 1, 129, 130, 143} == {int(code) for row in rows for code in row.split(",")}
