"""A Slurm of one machine for tests: called as `fake_slurm.py COMMAND ARGUMENTS`, its state is in $FAKE_SLURM."""

import os
import re
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", ""))
NUMBER = "77"  # of the one array of jobs that it takes
COMMANDS = ("sbatch", "srun", "scontrol", "sacct")


def put_on_path(folder: Path) -> dict[str, str]:
    """Make a folder with Slurm's commands; return the environment in which they are found."""
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def sbatch(script: str) -> None:
    """Start the tasks of an array."""
    (STATE / "submitted.sh").write_text(text := Path(script).read_text())
    nothing = subprocess.DEVNULL
    for task in range(int(asked(r"--array=0-(\d+)", text)) + 1):
        command = [sys.executable, __file__, "carry_out", str(task), script]
        subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    print(f"Submitted batch job {NUMBER}")


def asked(pattern: str, script: str) -> str:
    found = re.search(pattern, script)
    assert found, f"the script does not say {pattern}"
    return found[1]


def carry_out(task: str, script: str) -> None:
    """Run a task's script, anew as often as it is queued again meanwhile."""
    again = STATE / f"{NUMBER}_{task}.requeued"
    while subprocess.call(["bash", script], env=environment(task, script)) and again.exists():
        again.unlink()


def environment(task: str, script: str) -> dict[str, str]:
    """Return what Slurm tells a task."""
    cpus = asked(r"--cpus-per-task=(\d+)", Path(script).read_text())
    told = {"JOB_ID": str(int(NUMBER) + int(task)), "ARRAY_JOB_ID": NUMBER, "ARRAY_TASK_ID": task}
    told |= {"CPUS_PER_TASK": cpus, "NTASKS": "1", "JOB_NUM_NODES": "1", "JOB_NODELIST": "here"}
    told |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    return os.environ | {f"SLURM_{key}": value for key, value in told.items()}


def srun(*arguments: str) -> None:
    """Run a command with its output in the file that is asked for; all options have a value in a word or two."""
    output = arguments[arguments.index("--output") + 1]
    command = arguments[arguments.index(sys.executable) :]
    variables = {"A": "ARRAY_JOB_ID", "a": "ARRAY_TASK_ID", "j": "JOB_ID", "t": "PROCID"}
    for letter, variable in variables.items():
        output = output.replace(f"%{letter}", os.environ[f"SLURM_{variable}"])
    with Path(output).open("a") as file:
        sys.exit(subprocess.call(command, stdout=file, stderr=file))


def scontrol(action: str, job: str) -> None:
    """Queue a job again."""
    assert action == "requeue"
    (STATE / f"{job}.requeued").touch()


def sacct(*_: str) -> None:
    """Tell of no job: submitit looks for its result first."""
    print("JobID|State|NodeList")


if __name__ == "__main__":
    {run.__name__: run for run in (sbatch, carry_out, srun, scontrol, sacct)}[sys.argv[1]](*sys.argv[2:])
