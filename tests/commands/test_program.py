"""The program niels_gpt: its help, its version, and what it says to a command that it does not have."""

import os
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT, cli
from support import processes

from train.commands.program import COMMANDS

PROBE = """
import sys
from train.commands.program import main
main(["--help"])
sys.exit(any(name in sys.modules for name in ("hydra", "pydantic", "torch", "numpy")))
"""


def test_help_lists_every_command_and_imports_nothing(tmp_path: Path) -> None:
    """Well under 0.6 s: neither Hydra nor pydantic nor torch is imported."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")} == COMMANDS.keys()


def test_help_ends_quietly_when_nobody_reads_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "niels_gpt", "--help"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_from_any_folder_and_tells_how_it_is_used(command: str, tmp_path: Path) -> None:
    done = processes.cli("--help", cwd=tmp_path, script=command)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])
    assert command == "train" or done.stdout.startswith(f"usage: niels_gpt {command} ")


def test_in_a_clone_that_is_not_installed_it_runs_as_a_module(tmp_path: Path) -> None:
    venv.create(tmp_path)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(tmp_path / "bin" / "python"), "-m", "niels_gpt", "completion", "bash"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "_niels_gpt()" in done.stdout


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean niels_gpt train? niels_gpt --help"),
        (["precision=fp16"], "did you mean niels_gpt train? niels_gpt --help"),
        (["xyzzy"], "niels_gpt --help"),
    ],
)
def test_a_command_that_is_not_there_gets_a_suggestion(words: list[str], hint: str, tmp_path: Path) -> None:
    done = processes.cli(*words[1:], cwd=tmp_path, script=words[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: niels_gpt has no command {words[0]!r}\nhint: {hint}\n"


def test_hints_name_the_command_that_was_used(tmp_path: Path) -> None:
    installed = subprocess.run(
        [sys.executable, "-m", "niels_gpt", "train", "nam=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    in_clone = cli("nam=x", cwd=tmp_path)
    assert installed.stderr.endswith("hint: niels_gpt train --help lists all settings\n")
    assert in_clone.stderr.endswith("hint: python scripts/train.py --help lists all settings\n")


def test_flags_stand_anywhere_between_the_settings_of_training(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    words = ["model=tiny", "--config-dir", "a=b", "train.B=7", "--cfg", "job"]
    done = processes.cli(*words, cwd=tmp_path, script="train")
    assert done.returncode == 0 and "  B: 7\n" in done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_behind_stdout_has_its_exit_code(finished_run: Path) -> None:
    words = [sys.executable, "-m", "niels_gpt", "compare", str(finished_run), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 8 and "error: No space left on device\n" in done.stderr
    assert "Exception ignored" not in done.stderr


def hide_safetensors() -> None:
    vars(sys)["modules"]["safetensors"] = None


def test_a_missing_package_names_the_extra_that_brings_it(finished_run: Path, tmp_path: Path) -> None:
    done = processes.cli(str(finished_run), "out", cwd=tmp_path, script="export", before=hide_safetensors)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert done.stderr == "error: safetensors is not installed\nhint: pip install 'niels_gpt[export]'\n"


def test_the_installed_program_finds_its_launcher_from_any_folder(tmp_path: Path) -> None:
    """An editable install too, as `make setup` makes it: Hydra looks for plugins in folders on the path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "niels_gpt", "train", "--cfg", "hydra", "--package", "hydra.launcher"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "IsolatedLauncher" in done.stdout, done.stderr
