"""The lock agrees with pyproject.toml, names no registry, and is all that set-up installs."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY = re.compile(r"^(\S.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
MACHINES = [
    {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    for system, machine in (("linux", "x86_64"), ("darwin", "arm64"))
    for python in ("3.11", "3.12", "3.13")
]


def wanted(extra: str = "dev") -> Iterator[Requirement]:
    """Yield the requirements of `make setup`: the project's, the extra's, and those of its build."""
    own = PROJECT["project"]
    for line in [*own["dependencies"], *PROJECT["build-system"]["requires"], *own["optional-dependencies"][extra]]:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == canonicalize_name(own["name"]):
            for inner in requirement.extras:
                yield from wanted(inner)
        else:
            yield requirement


def locked(machine: dict[str, str]) -> dict[str, list[str]]:
    """Return the versions of each package that the lock has for a machine."""
    found: dict[str, list[str]] = {}
    for text, _ in ENTRY.findall(LOCK):
        entry = Requirement(text)
        if entry.marker is None or entry.marker.evaluate(machine):
            (pin,) = entry.specifier
            found.setdefault(entry.name, []).append(pin.version if pin.operator == "==" else str(pin))
    return found


def test_the_lock_agrees_with_pyproject_on_every_machine_and_names_no_registry_and_no_cuda() -> None:
    assert not re.search(r"://|--(?!hash=sha256:)|\.(com|org|io)\b|/", LOCK)
    rest = ENTRY.sub("", re.sub(r"^#.*$", "", LOCK, count=1, flags=re.MULTILINE))
    assert not rest.strip(), "entries without hashes"
    assert not [text for text, _ in ENTRY.findall(LOCK) if re.search("nvidia|cuda|triton", text)]
    ranges = [*wanted(), *map(Requirement, PROJECT["tool"]["uv"]["constraint-dependencies"])]
    for machine in MACHINES:
        has = locked(machine)
        assert not {name: versions for name, versions in has.items() if len(versions) > 1}, machine
        for need in (r for r in ranges if r.marker is None or r.marker.evaluate(machine)):
            versions = has.get(canonicalize_name(need.name), [])
            assert any(map(need.specifier.contains, versions)), f"{machine}: {need} is wanted, {versions} locked"
    assert len(list(wanted())) > 20 and len(locked(MACHINES[0])) > 60


def run_script(
    name: str, folder: Path, files: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a copy of a script in `folder`, where modules of `files` stand in for installed ones."""
    script = (ROOT / "scripts" / name).read_text(encoding="utf-8")
    for path, text in (files | {f"scripts/{name}": script}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    command = [sys.executable, str(folder / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)})


def test_a_new_lock_keeps_the_hashes_of_the_versions_that_stay(tmp_path: Path) -> None:
    one, two, new = (f" \\\n    --hash=sha256:{digit * 64}" for digit in "123")
    resolved = f"numpy==3.0{two}\ntorch==2.0 ; x{two}\n"
    uv = f"import sys, pathlib\npathlib.Path(sys.argv[-1]).write_text({resolved!r})\nprint(sys.argv)"
    files = {"requirements.lock": f"numpy==2.0{new}\ntorch==2.0 ; x{one}\n", "uv/__init__.py": ""}
    done = run_script("lock.py", tmp_path, files | {"uv/__main__.py": uv}, "--upgrade")
    assert done.returncode == 0 and "'--upgrade'" in done.stdout, done.stderr
    head, *rest = (tmp_path / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True)
    assert head.startswith("# Made by") and "".join(rest) == f"numpy==3.0{two}\ntorch==2.0 ; x{one}{two}\n"


FAKE_PIP = """import sys
from pathlib import Path
log = Path(__file__).parent.parent / "calls"
arguments = sys.argv[1:]
files = [Path(a) for a in arguments if a.endswith(".lock")]
names = sorted({line.split("==")[0] for file in files for line in file.read_text().splitlines() if "==" in line})
with log.open("a") as file:
    print(*(a for a in arguments if not a.startswith("/")), *names, file=file)
failing = (log.parent / "failing").read_text()
sys.exit(bool(failing) and failing in " ".join(arguments))
"""
ANOTHER = LOCK.replace("torch==2.1", "torch==99.1")  # which is not installed here
INSTALL = "--quiet install --no-deps --no-build-isolation"


def set_up(folder: Path, lock: str, failing: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the installer with a pip that only notes its arguments, and fails for those that contain `failing`."""
    files = {"requirements.lock": lock, "pip/__init__.py": "", "pip/__main__.py": FAKE_PIP, "failing": failing}
    done = run_script("install.py", folder, files)
    return done, (folder / "calls").read_text(encoding="utf-8").splitlines()


def test_set_up_installs_nothing_without_a_hash_and_what_builds_first(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, ANOTHER)
    assert done.returncode == 0, done.stderr
    assert calls[0] == f"{INSTALL} --require-hashes --requirement setuptools"
    torch = re.findall(rf"^torch==(\S+) .*'{sys.platform}'", ANOTHER, re.MULTILINE)[0]
    assert calls[1] == f"--quiet download --no-deps --dest torch=={torch}"
    assert calls[2] == f"{INSTALL} --require-hashes --requirement --no-index --find-links torch"
    assert calls[3].startswith(f"{INSTALL} --require-hashes --requirement alembic ") and " torch " in calls[3]
    assert calls[4:] == [f"{INSTALL} -e", "--quiet check"]
    (tmp_path / "calls").unlink()
    here = re.sub(r"^torch==\S+", f"torch=={version('torch').partition('+')[0]}", LOCK, flags=re.MULTILINE)
    done, calls = set_up(tmp_path, here)  # a torch that is installed already is kept
    assert done.returncode == 0 and not [call for call in calls if "download" in call]


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("--no-index", "error: pip found no torch, or one that is not in requirements.lock"),
        ("check", "pip install --force-reinstall --no-deps --index-url"),
    ],
)
def test_a_set_up_that_fails_says_the_way_out(tmp_path: Path, failing: str, said: str) -> None:
    done, _ = set_up(tmp_path, ANOTHER, failing)
    assert done.returncode == 1 and said in done.stderr and "hint: " in done.stderr
    assert "Traceback" not in done.stderr
