"""The README keeps its word: its commands compose, its targets and files exist, its tables agree with the code."""

import re
import shlex

import pytest
from conftest import CONF, ROOT, Compose

from niels_gpt.model.gpt import GPT
from train.config import load_plan

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, re.M | re.S))
COMMANDS = sorted(
    set(re.findall(r"python scripts/train\.py ([^\n`|]+)", BLOCKS + "\n".join(re.findall(r"`(.+?)`", README))))
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--" not in c])
def test_every_command_of_the_readme_composes(composed: Compose, command: str) -> None:
    overrides = [word for word in shlex.split(command) if not word.startswith(("-m", "hydra/", "hydra."))]
    first = [re.sub(r"^([\w./]+=[\w.-]+),.*", r"\1", word) for word in overrides if "interval(" not in word]
    assert load_plan(composed(*first))


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (\w+)\b", BLOCKS)) | set(re.findall(r"`make (\w+)`", README))
    assert {"train", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_file_of_the_readme_exists() -> None:
    for name in set(re.findall(r"`((?:niels_gpt|train|tests|scripts|conf)/[\w/]+\.\w+)`", README)):
        assert (ROOT / name).exists() or name == "conf/experiment/old.yaml", name


def test_the_table_of_groups_names_every_group_and_option() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", README, re.M))
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert rows.keys() == groups
    for group in groups - {"experiment"}:
        assert set(re.findall(r"`(\w+)`", rows[group])) == {path.stem for path in (CONF / group).glob("*.yaml")}


def test_the_models_have_the_sizes_that_the_table_says(composed: Compose) -> None:
    said = re.search(r"the shape: ([\d.]+), ([\d.]+) and ([\d.]+) million", README)
    assert said
    for name, millions in zip(("tiny", "small", "base"), said.groups(), strict=True):
        count = GPT(load_plan(composed(f"model={name}"))[0].model).parameter_count()
        assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from niels_gpt import errors

    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.NielsError) and kind.exit_code != 1
    }
    sentence = README[README.index("Exit codes:") : README.index("stopped by a signal")]
    assert codes | {0, 1, 129, 130, 143} == set(map(int, re.findall(r"\d+", sentence)))
