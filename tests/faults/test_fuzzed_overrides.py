"""F21, F22: fuzzed overrides are valid, or refused in a few lines, and leave nothing."""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from faults.door import Said, files_in, train
from faults.in_range import in_range
from faults.scale import scaled
from train.config import load_plan
from train.config.load import lists_to_tuples
from train.config.plan import ComposedCfg
from train.config.schema import RunCfg
from train.config.suggest import list_settings

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
COUNT = {"any": (15, 800), "in range": (8, 900), "sweeps": (4, 200), "garbage": (10, 100)}
STRATEGIES = {
    "any": st.lists(override, min_size=1, max_size=6),
    "in range": st.lists(possible, min_size=1, max_size=5),
    "sweeps": st.tuples(st.just("-m"), st.lists(st.one_of(possible, override), min_size=1, max_size=2)).map(
        lambda t: [t[0], *t[1], "train.seed=1,2"]
    ),
    "garbage": st.lists(
        st.text(max_size=40).filter(lambda word: not word.startswith("-")), min_size=1, max_size=3
    ),
}
FOREVER = ("--help", "-h", "hydra.help", "hydra.verbose")  # they print what was asked for, and end well
TRYING = partial(
    settings, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def require_right(words: list[str], said: Said, folder: Path) -> None:
    assert said.code in (0, 2, 8), (words, said)  # 8: dir is a file, or too long a name
    assert "Traceback" not in said.stderr and "it is a bug" not in said.stderr, (words, said)
    if said.code == 0:
        assert said.plan is None or round_trips(said.plan), words
        assert said.plan is None or any("hydra" in word for word in words) or said.plan == saved(said.plan), words
        return
    lines = said.stderr.splitlines()
    if lines[0].startswith("usage: "):  # as argparse prints what Hydra's flags cannot be
        return
    assert all(line.startswith(("error: ", "hint: ")) and line.isprintable() for line in lines), (words, said)
    assert lines[0].startswith("error: ") and max(map(len, lines)) < 1500, (words, said)
    assert files_in(folder) == [], (words, files_in(folder))


def round_trips(plan: list[RunCfg]) -> bool:
    """Whether a plan, written down and read again, is the same."""
    written = [json.dumps(cfg.model_dump(mode="json")) for cfg in plan]
    return [RunCfg.model_validate(lists_to_tuples(json.loads(text))) for text in written] == plan


def saved(plan: list[RunCfg]) -> list[RunCfg]:
    """Return the plan that the config asks for which Hydra has put into the run's folder."""
    with initialize_config_dir(str(Path(plan[0].dir, ".hydra").resolve()), version_base="1.3"):
        return load_plan(compose("config"))


def passable(words: list[str]) -> bool:
    """Whether a process can be given these words, and is not asked by them for something else than to train."""
    return not any(word.startswith(FOREVER) or "\0" in word for word in words)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_override_is_valid_or_refused_in_a_few_lines_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = Counter[int]()

    @TRYING(max_examples=scaled(*COUNT[kind]))
    @given(STRATEGIES[kind])
    def go(words: list[str]) -> None:
        if not passable(words):
            return
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        said = train(*words)
        require_right(words, said, tmp_path)
        ended[said.code] += 1

    go()
    assert ended.total() < 100 or min(ended[0] + (kind == "garbage"), ended[2]) > 0
