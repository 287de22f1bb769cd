"""F21, F22: fuzzed overrides are valid, or refused in a few lines, and leave nothing."""

import contextlib
import io
import json
import logging
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from unittest import mock

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from faults.door import never_forever
from faults.scale import scaled
from train.artifacts.run_folder import LOCK, unlock_folder
from train.cli.command import exit_on_error
from train.commands import train as command
from train.config import load_plan
from train.config.load import lists_to_tuples
from train.config.plan import ComposedCfg
from train.config.schema import RunCfg
from train.config.suggest import list_settings
from train.sweep.callback import PlanCallback
from train.sweep.launch import SweepRun

# What YAML would read as something else, or not at all, were it not written down with care.
TEXT = ["1e3", "0o7", "0777", "1_000", "12:30:45", "2026-01-01", "null", "~", "no", "off", "True", ".inf", "nan"]
TEXT += ["é", "😀", " a ", "a: b", "# x", "- a", "{a: 1}", "[1]", "!x", "&a", "*a", "%", "@", "`", "|", ">", "?"]
TEXT += ["a\tb", "a\nb", "\x1b", "\x7f", "\ufeff", "a\\b", "it's", '"', "=", "<<", "$"]
LEFT_OUT = {"files", "packages", "sources", "betas", "objective"} | {"dir"}  # lists, and a folder that is anywhere


def quoted(text: str) -> str:
    """Return text as Hydra's grammar takes it."""
    return "'" + text.replace("'", "\\'") + "'"


text = st.sampled_from(TEXT).map(quoted)


def values(key: str) -> st.SearchStrategy[str]:
    """Return values of a setting that are in its range."""
    model: Any = ComposedCfg
    for part in key.split("."):
        info = model.model_fields[part]
        model = info.annotation
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)] or [info.annotation]
    if get_origin(info.annotation) is Literal:
        return st.sampled_from(get_args(info.annotation))
    if kinds[0] is not str:
        constrained: Any = Annotated
        return st.from_type(constrained[kinds[0], "", *info.metadata]).map(str)
    pattern = next((m.pattern for m in info.metadata if getattr(m, "pattern", None)), None)
    return st.from_regex(pattern, fullmatch=True).map(quoted) if pattern else text


SINGLE = [key for key in sorted(list_settings(ComposedCfg)) if key.rpartition(".")[2] not in LEFT_OUT]
in_range = st.one_of(
    st.sampled_from(SINGLE).flatmap(lambda key: values(key).map(lambda value: f"{key}={value}")),
    st.lists(text, min_size=1, max_size=3).map(lambda items: f"data.files=[{','.join(items)}]"),
)
KNOWN = sorted(list_settings(ComposedCfg))
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
OPTIONS = [f"{path.parent.name}={path.stem}" for group in GROUPS for path in (CONF / group).glob("*.yaml")]
# What people and programs write where a number, a name or a list belongs.
ODD = (Path(__file__).parent / "odd_values.txt").read_text(encoding="utf-8").splitlines()
WORDS = ["+=abc", "=-0", "=", "~", "+", "++", "~~", "==", "a", "train", "train.B", "@", "model@", "a@b=c"]
LONG = ["9" * 300, "-" + "9" * 300, "a" * 300, "a/" * 200]
CONTROL = ["a\tb", "'a\nb'", "\x7f", "\x1b[31m", '"\x1b"', "\u202e", " ", ""]
kept_by_yaml = st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029")
value = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(LONG + CONTROL),
    st.integers().map(str),
    st.floats().map(str),
    st.text(kept_by_yaml, max_size=12),
    st.lists(st.sampled_from(ODD), max_size=3).map(lambda items: f"[{','.join(items)}]"),
)
misspelt = st.tuples(st.sampled_from(KNOWN), st.integers(0, 30), st.sampled_from(["", "x", "_", ".", "B"])).map(
    lambda t: t[0][: t[1] % len(t[0])] + t[2] + t[0][t[1] % len(t[0]) + 1 :]
)
key = st.one_of(st.sampled_from(KNOWN), st.sampled_from(GROUPS), misspelt, st.just("hydra.x"), st.text(max_size=8))
prefix = st.sampled_from(["", "", "", "", "+", "++", "~"])
override = st.one_of(
    st.tuples(prefix, st.sampled_from(KNOWN), value).map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.tuples(prefix, key, value).map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.sampled_from(OPTIONS),
    st.sampled_from(WORDS),
    st.text(max_size=20),
)
possible = st.one_of(in_range, in_range, st.sampled_from(OPTIONS))
sweeps = st.lists(st.one_of(possible, override), min_size=1, max_size=2).map(
    lambda words: ["-m", *words, "train.seed=1,2"]
)
word = st.text(max_size=40).filter(lambda word: not word.startswith("-"))
STRATEGIES = {  # each with its counts of tries
    "any": (15, 800, st.lists(override, min_size=1, max_size=6)),
    "in range": (8, 900, st.lists(possible, min_size=1, max_size=5)),
    "sweeps": (4, 200, sweeps),
    "garbage": (10, 100, st.lists(word, min_size=1, max_size=3)),
}
PRINTING = ("--help", "-h", "hydra.help", "hydra.verbose")  # they print what was asked for, and end well


Plan = list[RunCfg] | None


def train(*words: str) -> tuple[int, str, Plan]:
    """Do what `niels_gpt train WORDS` does in the present folder, up to carrying out the plan.

    Return its exit code, its stderr and the plan, if it has one.
    """
    plans: list[list[RunCfg]] = []
    stderr, code = io.StringIO(), 0
    with (
        never_forever(),
        mock.patch.object(sys, "argv", ["niels_gpt train", *words]),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1", HYDRA_MAIN_MODULE="__main__"),
        mock.patch.object(command, "carry_out", plans.append),
        mock.patch.object(SweepRun, "carry_out"),
        mock.patch.object(PlanCallback, "on_multirun_end"),  # there is nothing to report
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            with exit_on_error():
                command.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    for lock in Path().rglob(LOCK):
        unlock_folder(str(lock.parent))
    logging.getLogger().handlers.clear()
    return code, stderr.getvalue(), plans[0] if plans else None


def require_right(words: list[str], folder: Path, code: int, said: str, plan: Plan) -> None:
    assert code in (0, 2, 8), (words, code, said)  # 8: dir is a file, or too long a name
    assert "Traceback" not in said and "it is a bug" not in said, (words, said)
    if code == 0:
        if plan:
            written = [json.dumps(cfg.model_dump(mode="json")) for cfg in plan]
            assert [RunCfg.model_validate(lists_to_tuples(json.loads(cfg))) for cfg in written] == plan, words
        if plan and not any("hydra" in word for word in words):
            with initialize_config_dir(str(Path(plan[0].dir, ".hydra").resolve()), version_base="1.3"):
                assert load_plan(compose("config")) == plan, words
        return
    lines = said.splitlines()
    if lines[0].startswith("usage: "):  # as argparse prints what Hydra's flags cannot be
        return
    assert all(line.startswith(("error: ", "hint: ")) and line.isprintable() for line in lines), (words, said)
    assert lines[0].startswith("error: ") and max(map(len, lines)) < 1500, (words, said)
    assert list(folder.iterdir()) == [], words


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_override_is_valid_or_refused_in_a_few_lines_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part, whole, strategy = STRATEGIES[kind]
    ended = Counter[int]()

    @settings(
        max_examples=scaled(part, whole), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def go(words: list[str]) -> None:
        if any(word.startswith(PRINTING) or "\0" in word for word in words):
            return
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        code, said, plan = train(*words)
        require_right(words, tmp_path, code, said, plan)
        ended[code] += 1

    go()
    assert ended.total() < 100 or min(ended[0] + (kind == "garbage"), ended[2]) > 0
