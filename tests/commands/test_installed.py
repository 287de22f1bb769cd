"""The program, installed from its wheel, works in any folder, whatever the folder holds."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from support.processes import reset_signals

pytestmark = pytest.mark.slow
UNWANTED = shutil.ignore_patterns(".*", "runs", "cache", "build", "*.egg-info")  # in the clone itself
COMPILED = shutil.ignore_patterns("__pycache__")
SHADOW = 'raise SystemExit("this is the user\'s own module")\n'
SMOKE = ["experiment=smoke_pretrain", "train.total_steps=2", "data.size=200", "model.V=300"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and borrows the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "environment"
    shutil.copytree(
        ROOT, source, ignore=lambda path, names: (UNWANTED if path == str(ROOT) else COMPILED)(path, names)
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    python = ["--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, *python, "install", "--no-deps", str(wheel)], check=True)
    return environment / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose modules have the names of ours, which must not be imported."""
    for name in ("train.py", "conf.py", "train/__init__.py", "conf/__init__.py", "hydra_plugins/mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SHADOW)
    return tmp_path


def call(*words: object, cwd: Path, code: int = 0) -> str:
    """Call a program at home in a folder that nobody can write to; return its stdout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NIELS", "XDG"))}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env | {"HOME": "/proc"}, capture_output=True, text=True,
        preexec_fn=reset_signals, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert not re.search("Traceback|warning", done.stderr, re.I), done.stderr
    return done.stdout


def test_a_newcomer_trains_and_samples_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    program = installed / "niels_gpt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert call(program, "--version", cwd=tmp_path) == f"niels_gpt {project['version']}\n"
    said = call(program, "train", "experiment=smoke_pipeline", cwd=tmp_path)
    assert "talk to it  niels_gpt sample runs/smoke_pipeline --chat" in said
    assert sorted(os.listdir(tmp_path)) == ["cache", "runs"]
    said = call(program, "sample", "runs/smoke_pipeline", "--prompt", "Hello", "--json", cwd=tmp_path)
    assert json.loads(said)["prompt"] == "Hello"


def test_a_sweep_ignores_modules_of_the_same_names_in_its_folder(installed: Path, folder: Path) -> None:
    sweep = ["-m", *SMOKE, "name=sweep", "train.seed=1,2", "hydra.launcher.n_jobs=2"]
    assert "2 of 2 jobs finished" in call(installed / "niels_gpt", "train", *sweep, cwd=folder)
    assert call(installed / "python", "-c", "import train", cwd=folder, code=1) == "", "it keeps its own name"


def test_the_probes_of_batch_auto_ignore_them_too(installed: Path, folder: Path) -> None:
    as_module = [installed / "python", "-m", "niels_gpt", "train", *SMOKE]
    assert "micro_B=" in call(*as_module, "batch=auto", "global_B=4", "name=auto", cwd=folder)


@pytest.mark.parametrize("launcher", ["parallel", "queue"])
def test_the_workers_of_launchers_ignore_them_too(installed: Path, folder: Path, launcher: str) -> None:
    as_module = [installed / "python", "-m", "niels_gpt", "train", "-m", *SMOKE]
    sweep = [f"hydra/launcher={launcher}", "name=sweep", "train.seed=1,2"]
    assert "2 of 2 jobs finished" in call(*as_module, *sweep, cwd=folder)


def test_experiments_of_ones_own_come_from_conf_and_config_dir(installed: Path, folder: Path) -> None:
    (folder / "old.json").write_text('{"train": {"total_steps": 3}}')
    program = installed / "niels_gpt"
    assert "wrote conf/experiment/old.yaml" in call(program, "import-json", "old.json", cwd=folder)
    assert "total_steps: 3\n" in call(program, "train", "experiment=old", "--cfg", "job", cwd=folder)
    shutil.move(folder / "conf", folder / "elsewhere")
    other = ["experiment=old", "--config-dir", "elsewhere", "--cfg", "job"]
    assert "total_steps: 3\n" in call(program, "train", *other, cwd=folder)
    assert "experiment=old" in call(program, "train", "--help", "--config-dir", "elsewhere", cwd=folder)


def test_the_wheel_holds_the_program_and_nothing_else(installed: Path) -> None:
    (packages,) = installed.parent.glob("lib/python*/site-packages")
    files = [path.relative_to(packages) for path in packages.rglob("*.*") if path.is_file()]
    ours = {path for path in files if "dist-info" not in path.parts[0] and path.suffix not in (".pth", ".pyc")}
    assert {path.parts[0] for path in ours} == {"niels_gpt", "train", "conf", "hydra_plugins"}
    assert {path.suffix for path in ours if path.parts[0] == "conf"} == {".yaml"}
    others = {str(path) for path in ours if path.suffix not in (".yaml", ".py")}
    pages = {"niels_gpt/serving/page.html", "train/report/templates/sweep.html"}
    assert others == {"niels_gpt/py.typed", *pages}
