"""Install requirements.lock and this project; every file must match a locked hash.

`make setup` runs it with nothing but Python. It ignores the dependencies that packages declare, since on Linux
torch declares CUDA, gigabytes that nothing here uses.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
OPTIONS = ["--no-deps", "--no-build-isolation"]
OTHER_BUILD = """error: pip found no torch, or one that is not in requirements.lock: see above
hint: install a build that you trust; make setup will keep it:
hint: {python} -m pip install --no-deps torch=={torch}"""
INCOMPLETE = """error: not everything could be installed: see above
hint: if CUDA's packages are missing, pip found only torch's build for CUDA. Take PyTorch's build for the CPU:
hint: {python} -m pip install --force-reinstall --no-deps --index-url URL_OF_PYTORCHS_CPU_BUILDS torch=={torch}
hint: or take CUDA too: {python} -m pip install torch=={torch}
hint: then run make setup again"""


def main() -> None:
    """Install, setuptools first: it builds this project, and the packages that have no wheel."""
    lock = LOCK.read_text(encoding="utf-8")
    platform = "darwin" if sys.platform == "darwin" else "linux"
    torch = re.findall(rf"^torch==(\S+) ;.*'{platform}'", lock, re.MULTILINE)[0]
    installed = {one.name: one.version.partition("+")[0] for one in distributions()}
    with tempfile.TemporaryDirectory() as folder:

        def install(name: str, *options: str) -> bool:
            part = Path(folder, "part.lock")
            part.write_text(
                "".join(re.findall(rf"^{name}==(?:.*\\\n)+.*\n", lock, re.MULTILINE)), encoding="utf-8"
            )
            return pip("install", *OPTIONS, "--require-hashes", "--requirement", str(part), *options)

        install("setuptools")
        # Given hashes, pip prefers an index that publishes them to a folder of wheels. So it first chooses a torch
        # without them, the build for the CPU if it sees one; then that file must match a hash.
        if installed.get("torch") != torch and not (
            pip("download", "--no-deps", "--dest", folder, f"torch=={torch}")
            and install("torch", "--no-index", "--find-links", folder)
        ):
            raise SystemExit(OTHER_BUILD.format(python=sys.executable, torch=torch))
    if not (
        pip("install", *OPTIONS, "--require-hashes", "--requirement", str(LOCK))
        and pip("install", *OPTIONS, "-e", str(ROOT))
        and pip("check")
    ):
        raise SystemExit(INCOMPLETE.format(python=sys.executable, torch=torch))


def pip(*arguments: str) -> bool:
    """Run pip; return whether it succeeded."""
    return subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments]).returncode == 0


if __name__ == "__main__":
    main()
