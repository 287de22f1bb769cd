"""The command line as its user sees it, from another folder: exit codes, messages, a run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONF, ROOT, cli
from faults.door import run_timed
from support import processes

from train.cli.command import SPIN_COUNT
from train.cli.subprocesses import parent_pipe

SMOKE = ["experiment=smoke_pretrain", "data.size=200", "model.V=300", "train.total_steps=2"]


def test_one_run_leaves_its_folder_and_a_second_one_changes_nothing(tmp_path: Path) -> None:
    done = cli(*SMOKE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "smoke_pretrain"
    assert {path.name for path in run.iterdir()} == {
        ".hydra", "pretrain", "result.json", "run.lock", "tokenizer.json", "train.log",
    }  # fmt: skip
    assert json.loads((run / "result.json").read_text())["phases"][0]["step"] == 2
    settings = r"device=\w+ amp=\w+ amp_dtype=fp16 activation_checkpointing=false micro_B=4 "
    assert re.search(f"^pretrain: {settings}", done.stdout, re.M)
    assert "\x1b" not in done.stdout, "no bars or colours into a pipe"
    again = processes.cli(*SMOKE, cwd=tmp_path)
    first = "runs/smoke_pretrain: pretrain; loading torch"
    assert again.returncode == 0
    assert again.stdout.startswith(f"{first}\npretrain: complete at step 2, nothing to do\nfinished in 0 s: ")
    config = (run / ".hydra" / "config.yaml").read_bytes()
    other = processes.cli(*SMOKE, "train.base_lr=0.5", "data.size=210", cwd=tmp_path)
    assert other.returncode == 4
    assert "data.size=200, not 210" in other.stderr and "train.base_lr=0.014, not 0.5" in other.stderr
    assert (run / ".hydra" / "config.yaml").read_bytes() == config
    export = processes.cli("runs/smoke_pretrain", "out", cwd=tmp_path, script="export")
    assert export.returncode == 0 and (tmp_path / "out" / "model.safetensors").exists(), export.stderr


@pytest.mark.parametrize("words", [SMOKE, ["--help"], ["--cfg", "job"], ["train.B=0"]], ids=lambda words: words[0])
def test_a_runs_first_line_and_help_config_and_refusals_come_before_torch(
    tmp_path: Path, words: list[str]
) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "train.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    before, *rest = re.split(r"^import time: .* torch\b.*\n", done.stdout, flags=re.M)
    said = [line for line in before.splitlines() if not line.startswith("import time:")]
    assert (said == ["runs/smoke_pretrain: pretrain; loading torch"]) is (rest != []) is (words == SMOKE)
    assert said


def test_a_warning_is_given_once_in_a_pipeline(tmp_path: Path) -> None:
    smoke = ["experiment=smoke_pipeline", *SMOKE[1:], "sft.train.total_steps=2"]
    assert processes.cli(*smoke, cwd=tmp_path).returncode == 0
    (tmp_path / "runs" / "smoke_pipeline" / "result.json").write_text("{")
    done = processes.cli(*smoke, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "result.json is damaged" in warnings[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.Bee=2"], "error: train.Bee is unknown; did you mean train.B?"),
        (["train.B=1.5", "--cfg", "job"], "error: train.B=1.5: must be an integer"),
        (["device=cuda"], "error: device=cuda: must be auto, cpu or mps"),
        (["--fast"], "error: unrecognized arguments: --fast"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    done = processes.cli("experiment=smoke_pretrain", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("chdir", ["false", "true"])
def test_a_run_folder_may_be_chosen_by_hydra(tmp_path: Path, chdir: str) -> None:
    done = processes.cli(*SMOKE, "hydra.run.dir=own", f"hydra.job.chdir={chdir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "result.json").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["train", "count_lines"])
def test_outside_the_environment_two_lines_tell_how_to_activate_it(tmp_path: Path, script: str) -> None:
    bare = [sys.executable, "-S", "-E", str(ROOT / "scripts" / f"{script}.py")]  # without installed packages
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (2, "", [])
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {sys.executable} has no hydra")
    assert hint.startswith("hint: source ") and f"{os.path.relpath(ROOT, tmp_path)}/.venv/bin/activate" in hint


def test_help_says_what_options_mean_and_which_values_settings_allow(tmp_path: Path) -> None:
    done = processes.cli("--help", cwd=tmp_path)
    assert done.returncode == 0
    said = " ".join(done.stdout.split())
    for words in (
        "memory=ckpt Recompute the activations of each block: less memory, more time, the same numbers.",
        "model.dropout=0.0 dropout rate on embeddings and residual branches (a number, at least 0 and below 1) ",
        "device=auto auto: mps if available, else cpu (auto, cpu or mps) ",
        "which has its own total_steps and base_lr",
    ):
        assert words in said, words
    options = {f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml")}
    assert options <= {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_with_other_flags_of_hydra_adds_the_options_of_ones_own_folder(tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\n# My $ own.\nname: mine\n")
    plain = processes.cli("--help", "train.B=8", cwd=tmp_path)
    own = processes.cli("train.B=8", "--help", "--config-dir", "own", cwd=tmp_path)
    added = [line for line in own.stdout.splitlines() if line not in plain.stdout.splitlines()]
    assert [line.split() for line in added] == [["experiment=mine", "My", "$", "own."]], own.stderr


def test_help_takes_less_than_a_second(tmp_path: Path) -> None:
    """In seconds of the CPU, which a busy machine does not stretch; imports count."""
    assert run_timed("--help", cwd=tmp_path)[1] < 1.0


def test_a_script_that_is_started_through_a_symbolic_link_finds_its_configs(tmp_path: Path) -> None:
    link = tmp_path / "train"
    link.symlink_to(ROOT / "scripts" / "train.py")
    words = [sys.executable, str(link), "--cfg", "job", "--package", "model"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "\nT: 256\n" in done.stdout


def test_help_shows_what_a_command_would_take(tmp_path: Path) -> None:
    own = ["optim=adamw", "model=small", "train.seed=3"]
    lines = processes.cli("--help", *own, cwd=tmp_path).stdout.splitlines()
    composed = yaml.safe_load(processes.cli("--cfg", "job", "--resolve", *own, cwd=tmp_path).stdout)
    for section in ("model", "data", "train"):
        for name, value in composed[section].items():
            text = json.dumps(value).replace('"', "").replace(" ", "")
            assert any(f"{line} ".startswith(f"  {section}.{name}={text} ") for line in lines), (name, text)


def run_program(program: str, *arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that imports the package."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **keywords)


DEFERRING = """
import os, sys, time
from train.cli.command import defer_signals, run_command

def main():
    with defer_signals():
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.3)
        print("whole")
    print("too late")

run_command(main)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_job_of_a_parent_waits_until_an_import_is_whole(signum: int) -> None:
    with parent_pipe() as (reading, end):
        own = {"env": os.environ | end, "pass_fds": (reading,), "preexec_fn": processes.reset_signals}
        done = run_program(DEFERRING, str(int(signum)), **own)
    assert (done.returncode, done.stdout) == (128 + signum, "whole\n"), done.stderr


MERGING = """
import atexit, os, random, signal, string, threading
from niels_gpt.tokenizer import train_bpe
from train.cli.command import run_command

def texts():
    letters = random.Random(0).choices(string.ascii_lowercase + " " * 5, k=1 << 20)
    yield from ("".join(letters[at : at + 1000]) for at in range(0, len(letters), 1000))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()  # in the midst of seconds of merges

atexit.register(print, "Python shuts down")
run_command(lambda: train_bpe(texts(), 16384))
"""


def test_a_signal_leaves_the_training_of_a_tokenizer_behind_and_python_does_not_shut_down_around_it() -> None:
    done = run_program(MERGING)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, ""), done.stderr
    assert done.stderr == "stopped; saved files are intact\n"


@pytest.mark.parametrize(("variables", "expected"), [({}, SPIN_COUNT), ({"OMP_NUM_THREADS": "2"}, "None")])
def test_the_spin_count_is_limited_before_torch_unless_an_openmp_variable_is_set(
    variables: dict[str, str], expected: str
) -> None:
    program = "import os, sys; from train.cli.command import run_command; "
    program += 'run_command(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))'
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = run_program(program, env=kept | variables)
    assert done.stdout == f"{expected} False\n", done.stderr
