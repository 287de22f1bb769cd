"""Configs in ./conf add options to niels_gpt, replace nothing, and leave other programs of Hydra alone."""

import subprocess
import sys
from pathlib import Path

from support.processes import cli

OTHER = """
import hydra

@hydra.main(version_base="1.3", config_path="elsewhere", config_name="config")
def main(cfg):
    print(cfg)

if __name__ == "__main__":
    main()
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_another_program_of_hydra_with_a_module_train_runs_without_them(tmp_path: Path) -> None:
    write(tmp_path / "train.py", OTHER)
    write(tmp_path / "elsewhere" / "config.yaml", "a: 1\n")
    write(tmp_path / "conf" / "mine" / "b.yaml", "b: 2\n")
    command = [sys.executable, "train.py", "+mine=b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'a': 1, 'mine': 'b'}\n", "")


def test_they_come_after_the_configs_of_niels_gpt_and_of_config_dir(tmp_path: Path) -> None:
    for folder in ("conf", "other"):
        write(tmp_path / folder / "experiment" / "mine.yaml", f"# @package _global_\nname: from_{folder}\n")
    write(tmp_path / "conf" / "schema.yaml", "mine: 1\n")
    write(tmp_path / "conf" / "hydra" / "launcher" / "isolated.yaml", "_target_: mine\n")
    write(tmp_path / "conf" / "config.yaml", "mine: 1\n")
    for words, name in (([], "from_conf"), (["--config-dir", "other"], "from_other")):
        done = cli("experiment=mine", *words, "--cfg", "all", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"\nname: {name}\n" in done.stdout and "mine: 1" not in done.stdout
        assert "_target_: hydra_plugins.niels_gpt.launcher.IsolatedLauncher" in done.stdout
