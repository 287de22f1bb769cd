"""Make requirements.lock: exact versions with hashes for Linux and macOS, resolved by uv.

Locked versions stay if pyproject.toml admits them; uv's options take newer ones, as ARGS=--upgrade does. A hash
that you add stays with its version, such as that of torch's build for the CPU, which `pip hash FILE` prints.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = "# Made by `make lock` from pyproject.toml; not to be edited.\n"
RESOLVE = ["pip", "compile", "pyproject.toml", "--extra=dev", "--universal", "--python-version=3.11"]
PLAIN = ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "--output-file"]
ENTRY = re.compile(r"^(\S+==\S+)(.*)((?: \\\n    --hash=\S+)+)$", re.MULTILINE)


def main() -> None:
    """Resolve, then add the hashes that the lock had for the same versions."""
    known = {pin: hashes.split() for pin, _, hashes in ENTRY.findall(LOCK.read_text(encoding="utf-8"))}
    done = subprocess.run([sys.executable, "-m", "uv", *RESOLVE, *sys.argv[1:], *PLAIN, str(LOCK)], cwd=ROOT)
    if done.returncode:
        raise SystemExit("error: uv could not make requirements.lock: see above\nhint: make lock installs uv")

    def add_known(entry: re.Match[str]) -> str:
        hashes = {*entry[3].split(), *known.get(entry[1], ())} - {"\\"}
        return " \\\n    ".join([entry[1] + entry[2], *sorted(hashes)])

    LOCK.write_text(HEADER + ENTRY.sub(add_known, LOCK.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
