"""The console on a terminal: a bar instead of the steps' lines, messages wrapped at words; the log keeps all."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import rich
from conftest import Run

from train.cli.console import ConsoleHandler, LogFile


@contextmanager
def logged_to(file: Path, width: int, *, terminal: bool) -> Iterator[io.StringIO]:
    """Log to a console of a width and to a file, as a run does; yield what the console gets."""
    shown, log = io.StringIO(), logging.getLogger("niels_gpt")
    rich.reconfigure(file=shown, force_terminal=terminal, width=width, color_system=None)
    log.setLevel(logging.INFO)
    with mock.patch.object(log, "handlers", [ConsoleHandler(), LogFile(file)]):
        yield shown
    log.setLevel(logging.NOTSET)
    rich.reconfigure()


def plain(text: str) -> list[str]:
    """Return the lines of a terminal without what moves its cursor."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


def test_a_terminal_shows_a_bar_and_whole_words_and_the_log_has_every_line(
    run_folder: Run, tmp_path: Path
) -> None:
    with logged_to(tmp_path / "train.log", 80, terminal=True) as shown:
        run_folder("train.total_steps=6")
    lines = plain(shown.getvalue())
    log = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split()[1] for line in log if re.match(r"step \d/6  loss", line)] == [
        f"{n}/6" for n in range(1, 7)
    ]
    assert not any("grad_norm" in line for line in lines)
    bars = [line for line in lines if "━" in line and "tokens/s" in line]
    assert bars and all(re.search(r" \d/6 +loss .* left *$", bar) and len(bar) <= 80 for bar in bars)
    for start in ("pretrain: device=", "step 2/6  validation loss"):
        (whole,) = (line for line in log if line.startswith(start))
        first = next(n for n, line in enumerate(lines) if line.startswith(start))
        assert len(whole) > 80 >= max(map(len, lines[first : first + 3]))
        assert " ".join(lines[first : first + 4]).split()[: len(whole.split())] == whole.split()


def test_into_a_pipe_a_line_stays_a_line(run_folder: Run, tmp_path: Path) -> None:
    with logged_to(tmp_path / "train.log", 80, terminal=False) as shown:
        run_folder("train.total_steps=2")
    assert shown.getvalue() == (tmp_path / "train.log").read_text()


def test_a_command_to_paste_is_not_wrapped(tmp_path: Path) -> None:
    command = f"talk to it  niels_gpt sample {tmp_path} --prompt ..."
    with logged_to(tmp_path / "train.log", 30, terminal=True) as shown:
        logging.getLogger("niels_gpt").info(command)
    assert plain(shown.getvalue())[0] == command
