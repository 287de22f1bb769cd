"""Make requirements.lock: exact versions with hashes, for Linux and macOS, resolved by uv.

What is locked stays where pyproject.toml admits it; uv's own options take newer versions, as ARGS=--upgrade or
ARGS="--upgrade-package numpy" do. A hash that the index lacks stays with its version, as that of torch's build for
the CPU: pip download --no-deps torch==VERSION gets the file, ARGS="--build FILE" adds it.
"""

import _root  # noqa: F401  isort: skip
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from niels_gpt.errors import ConfigError, NielsError
from train.cli.command import Parser, command

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = "# Made by `make lock` from pyproject.toml; not to be edited.\n"
RESOLVE = ["pip", "compile", "pyproject.toml", "--extra=dev", "--universal", "--python-version=3.11"]
PLAIN = ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "--output-file"]
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)(.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def main() -> None:
    """Resolve; keep the hashes of builds that the index lacks, and add those that were named."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--build", type=Path, action="append", default=[], help="a wheel that may be used too, torch's for the CPU"
    )
    options, own = parser.parse_known_args()
    known = hashes(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
    for wheel in options.build:
        known.setdefault(release(wheel), set()).add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    done = subprocess.run([sys.executable, "-m", "uv", *RESOLVE, *own, *PLAIN, str(LOCK)], cwd=ROOT)
    if done.returncode:
        raise NielsError("requirements.lock could not be made", "make lock sets up what it needs")
    text = ENTRY.sub(lambda entry: with_hashes(entry, known), LOCK.read_text(encoding="utf-8"))
    LOCK.write_text(HEADER + text, encoding="utf-8")


def hashes(text: str) -> dict[str, set[str]]:
    """Return the hashes of each name==version in a lock."""
    found: dict[str, set[str]] = {}
    for name, version, _, tail in ENTRY.findall(text):
        found.setdefault(f"{name}=={version}", set()).update(re.findall(r"sha256:(\w+)", tail))
    return found


def release(wheel: Path) -> str:
    """Return the name==version of a wheel, without the +cpu of a build."""
    parts = wheel.name.split("-")
    if wheel.suffix != ".whl" or len(parts) < 5:
        raise ConfigError(f"--build {wheel} is not a wheel", "pip download --no-deps torch==VERSION gets one")
    return f"{parts[0].lower().replace('_', '-')}=={parts[1].partition('+')[0]}"


def with_hashes(entry: re.Match[str], known: dict[str, set[str]]) -> str:
    """Return an entry with all hashes that are known of its release."""
    name, version, marker, tail = entry.groups()
    every = {*re.findall(r"sha256:(\w+)", tail), *known.get(f"{name}=={version}", ())}
    return f"{name}=={version}{marker}" + "".join(f" \\\n    --hash=sha256:{one}" for one in sorted(every))


if __name__ == "__main__":
    command(main)
