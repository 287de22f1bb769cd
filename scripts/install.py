"""Install requirements.lock and this project; every file must match a locked hash.

Dependencies are not followed, since on Linux torch's would be CUDA, gigabytes of it. `make setup` runs it, before
there is anything but the standard library.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HASHED = ["install", "--no-deps", "--no-build-isolation", "--require-hashes", "--requirement"]
UNKNOWN_BUILD = """the torch that pip found is not one of requirements.lock, or could not be had: see above
hint: one that you trust can be installed without a hash, then make setup goes on with it:
hint: {python} -m pip install --no-deps torch=={torch}"""
INCOMPLETE = """{python} lacks packages: see above
hint: if they are CUDA's, pip found torch's build for it alone. Either take PyTorch's build for the CPU:
hint: {python} -m pip install --force-reinstall --no-deps --index-url URL_OF_PYTORCHS_CPU_BUILDS torch=={torch}
hint: or take CUDA along, gigabytes that nothing here uses: {python} -m pip install torch=={torch}
hint: then make setup again"""


def main() -> None:
    """Install, setuptools first: it builds this project, and the packages that have no wheel."""
    lock = LOCK.read_text(encoding="utf-8")
    platform = "darwin" if sys.platform == "darwin" else "linux"
    torch = re.findall(rf"^torch==(\S+) ;.*'{platform}'", lock, re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        install(entries(lock, "setuptools"), Path(folder))
        if installed("torch") != torch and not install_torch(entries(lock, "torch"), torch, Path(folder)):
            end(UNKNOWN_BUILD, torch)
    if not pip(*HASHED, str(LOCK)) or not pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)):
        end("not everything could be installed: see above", torch)
    if not pip("check"):
        end(INCOMPLETE, torch)


def install_torch(locked: str, torch: str, folder: Path) -> bool:
    """Install torch, a build for the CPU alone if pip is shown one; whether that worked.

    Given hashes, pip prefers an index that publishes them to a folder of wheels, whatever is in it; so it chooses
    without them first, and what it chose has to have one of them.
    """
    found = pip("download", "--no-deps", "--dest", str(folder), f"torch=={torch}")
    return found and install(locked, folder, "--no-index", "--find-links", str(folder))


def entries(lock: str, name: str) -> str:
    """Return the entries of a package in the lock, one for each platform or Python."""
    return "".join(re.findall(rf"^{name}==(?:.*\\\n)+.*\n", lock, re.MULTILINE))


def install(locked: str, folder: Path, *options: str) -> bool:
    """Install entries of the lock; whether that worked."""
    part = folder / "part.lock"
    part.write_text(locked, encoding="utf-8")
    return pip(*HASHED, str(part), *options)


def installed(name: str) -> str:
    """Return the version of an installed package without the +cpu of a build; empty where there is none."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def pip(*arguments: str) -> bool:
    """Run pip; whether it had nothing to complain of."""
    return subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments]).returncode == 0


def end(message: str, torch: str) -> None:
    """End with a message."""
    print("error:", message.format(python=sys.executable, torch=torch), file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
