"""niels_gpt sample --chat: commands, and a terminal with streaming, Ctrl-C, history and text of several lines."""

import json
import os
import pty
import re
import select
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from support import processes

from niels_gpt.printable import escape_text

RUN = "run"
DIM = "\x1b[2m"
STATUS = r"(\d+) tokens, [\d,]+ tokens/s, context (\d+) of 64"


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    """A folder to chat in, with the run."""
    (tmp_path / RUN).symlink_to(finished_run)
    return tmp_path


def take_terminal(name: str, *missing: str) -> None:
    """Make a terminal the controlling one, with Ctrl-C and Ctrl-D; `missing` modules cannot be imported."""
    os.login_tty(os.open(name, os.O_RDWR))
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]


class Terminal:
    """A chat in a terminal: what it shows is in `shown`."""

    def __init__(self, folder: Path, *flags: str, missing: tuple[str, ...] = (), **env: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.shown = ""
        self.child = processes.start(
            *(RUN, "--chat", "--max-tokens", "5", *flags), cwd=folder, script="sample",
            env=os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(folder / "state")} | env,
            before=partial(take_terminal, os.ttyname(self._theirs), *missing),
        )  # fmt: skip

    def __enter__(self) -> "Terminal":
        self.wait_for("you: ")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind:
            self.child.process.kill()
        self.child.end()
        os.close(self._ours)
        os.close(self._theirs)

    def type(self, keys: str, awaited: str = STATUS + "[^$]*you: ") -> str:
        """Press keys; return what is shown from then until what is awaited."""
        self.shown = ""
        os.write(self._ours, keys.encode())
        return self.wait_for(awaited)

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
        return self.shown

    def leave(self, keys: str = "\x04") -> None:
        """Press Ctrl-D or other keys that end the chat, and see that it ended well."""
        os.write(self._ours, keys.encode())
        self.child.process.join(60)
        assert self.child.process.exitcode == 0


def chat(folder: Path, *lines: str, flags: tuple[str, ...] = ()) -> tuple[str, str]:
    """Pipe lines into a chat; return its output and its errors."""
    words = [RUN, "--chat", "--max-tokens", "200", "--ignore-eos", *flags]
    done = processes.cli(*words, cwd=folder, script="sample", input="".join(f"{line}\n" for line in lines))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def answers(shown: str) -> list[str]:
    """Return the answers in a transcript."""
    return re.findall(r"^model: (.*?)(?=^you: |\Z)", shown, re.MULTILINE | re.DOTALL)


def saved(path: Path) -> list[tuple[str, str]]:
    """Return the roles and texts of the one conversation in a file."""
    (row,) = path.read_text().splitlines()
    return [(message["role"], message["content"]) for message in json.loads(row)["messages"]]


def test_piped_questions_are_answered_in_turn_until_quit_or_the_end(folder: Path) -> None:
    shown, errors = chat(folder, "hi", "", "yes", flags=("--max-tokens", "5"))
    assert errors == "" and re.fullmatch(r"you: hi\nmodel: [^\0]+\nyou: \nyou: yes\nmodel: [^\0]+\n", shown)
    assert answers(chat(folder, "hi", "/quit", "yes", flags=("--max-tokens", "5"))[0]) == answers(shown)[:1]


def test_what_looks_like_a_command_never_reaches_the_model(folder: Path) -> None:
    shown, errors = chat(folder, "/retri", "/", "/etc/passwd has what?", "/help")
    assert "model: " not in shown and errors.count("error: there is no command /") == 3
    listed = re.search("hint: the commands are (.*)", errors)
    assert listed and [name for name in listed[1].split(", ") if name not in shown] == []


def test_each_conversation_that_outgrows_the_context_says_so_once(folder: Path) -> None:
    long = ["word " * 40] * 2
    shown, errors = chat(folder, *long, "/reset", *long, "/system Be brief.", *long)
    assert len(answers(shown)) == 6 and errors.count("more than the model sees") == 3


def test_reset_forgets_and_retry_answers_with_another_seed(folder: Path) -> None:
    lines = [
        "/retry",
        "hi",
        "more",
        "/reset",
        "/retry",
        "hi",
        "/retry",
        "/save retried.jsonl",
        "/temp 0",
        "/retry",
    ]
    shown, errors = chat(folder, *lines, flags=("--max-tokens", "20"))
    first, _, fresh, another = answers(shown)
    assert first == fresh != another
    (_, question), (_, answer) = saved(folder / "retried.jsonl")
    assert question == "hi" and escape_text(answer).split() == another.split()
    assert re.findall("error: (.*)", errors) == [
        *["there is no question to answer again"] * 2,
        "at temperature 0 each answer is the same",
    ]


def test_a_system_message_is_shown_and_changed_and_changes_the_answers(folder: Path) -> None:
    lines = ["/system", "hi", "/system Be long.", "hi", "/system", '/system ""', "/system", "hi"]
    shown, errors = chat(folder, *lines, flags=("--system", "Be brief."))
    assert errors == "" and len(set(answers(shown))) == 3
    told = [line for line in shown.splitlines() if line in ("Be brief.", "Be long.", "there is no system message")]
    assert told == ["Be brief.", "Be long.", "there is no system message"]
    assert answers(shown)[2] == answers(chat(folder, "hi")[0])[0]


def test_settings_are_shown_changed_and_refused(folder: Path) -> None:
    lines = [
        "/set max-tokens 3",
        "/temp 0.3",
        "/set",
        "/temp warm",
        "/set top_p 7",
        "/set heat 1",
        '/set stop ""',
        "hi",
    ]
    shown, errors = chat(folder, *lines)
    assert "max_tokens 3\n" in shown and shown.count("temperature 0.3\n") == 2 and "top_p 1.0\n" in shown
    assert re.findall("error: (.*)", errors) == [
        "temperature: must be a number",
        "top_p: must be at most 1",
        "there is no setting heat",
        "stop: must have 1 to 256 characters",
    ]
    assert answers(shown) == answers(chat(folder, "hi", flags=("--max-tokens", "3", "--temperature", "0.3"))[0])


def test_a_saved_conversation_is_training_data_and_never_overwrites(folder: Path) -> None:
    lines = [
        "/save said.jsonl",
        "hi",
        "/save",
        *["/save said.jsonl"] * 2,
        "/save no/x.jsonl",
        "more",
        "/save val.jsonl",
    ]
    shown, errors = chat(folder, *lines, flags=("--system", "Be brief.", "--top-k", "0", "--temperature", "9"))
    assert re.findall("error: (.*)", errors) == [
        "there is nothing to save",
        "no file is named",
        "said.jsonl already exists",
        "no/x.jsonl cannot be created: there is no folder no",
    ]
    conversation = saved(folder / "said.jsonl")
    answer = conversation[2][1]
    assert conversation == [("system", "Be brief."), ("user", "hi"), ("assistant", answer)]
    assert escape_text(answer) != answer and escape_text(answer).split() == answers(shown)[0].split()
    data = ["data=jsonl", "data.files=said.jsonl", "data.val_files=val.jsonl", "data.tokenizer=bytes"]
    done = processes.cli("phase=sft", "init_from=null", *data, cwd=folder, script="prepare")
    assert done.returncode == 0, done.stderr
    assert "data: jsonl: files: 1, rows: 1 messages\n" in done.stdout


def test_ctrl_c_stops_the_answer_and_not_the_program(folder: Path) -> None:
    with Terminal(folder, "--ignore-eos", "--max-tokens", "1000000") as terminal:
        terminal.type("go on\r", "model: [^$]{80}")  # it streams
        shown = terminal.type("\x03", STATUS + "[^$]*you: ")
        assert 20 < int(re.findall(STATUS, shown)[0][0]) < 1_000_000 and "cut at" not in shown
        terminal.type("/save stopped.jsonl\r", "wrote[^$]*you: ")
        assert [role for role, _ in saved(folder / "stopped.jsonl")] == ["user", "assistant"]
        assert len(saved(folder / "stopped.jsonl")[1][1]) > 50, "what was said is kept"
        terminal.type("/set max_tokens 3\r", "max_tokens 3[^$]*you: ")
        assert re.findall(STATUS + ", cut at max_tokens", terminal.type("and now?\r"))[0][0] == "3"
        time.sleep(0.3)  # Python's readline misses a signal that comes just before it waits for keys
        for keys in ("\x03", "half", "\x03"):  # what is typed between counts, and is discarded
            terminal.type(keys, keys if keys == "half" else "press Ctrl-C again to end the chat[^$]*you: ")
            time.sleep(0.3)
        terminal.leave("\x03")


def test_text_of_several_lines_is_one_question(folder: Path) -> None:
    with Terminal(folder) as terminal:
        assert "\x1b[?2004h" in terminal.shown, "the terminal is asked to mark what is pasted"
        terminal.type('"""one\r', r"\.\.\.  ")
        terminal.type('two"""\r')
        terminal.type("\x1b[200~three\nfour\x1b[201~\r")  # as terminals paste
        terminal.type("/save lines.jsonl\r", "wrote[^$]*you: ")
        terminal.leave("/quit\r")
    assert [text for role, text in saved(folder / "lines.jsonl") if role == "user"] == ["one\ntwo", "three\nfour"]


def test_arrow_keys_recall_lines_of_earlier_chats_from_a_private_file(folder: Path) -> None:
    with Terminal(folder) as terminal:
        terminal.type("remember me\r")
        terminal.leave()
    history = folder / "state" / "niels_gpt" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    with Terminal(folder) as terminal:
        terminal.type("\x1b[A", "remember me")
        terminal.type("\r")
        terminal.leave()


@pytest.mark.parametrize("without", [{"missing": ("readline",)}, {"XDG_STATE_HOME": os.devnull}])
def test_a_chat_does_without_history(folder: Path, without: Any) -> None:
    with Terminal(folder, **without) as terminal:
        terminal.type("hi\r")
        terminal.leave()


def test_speed_is_dim_but_with_no_color(folder: Path) -> None:
    with Terminal(folder) as terminal:
        assert re.search(re.escape(DIM) + STATUS, terminal.type("hi\r"))
        terminal.leave()
    with Terminal(folder, NO_COLOR="1") as terminal:
        assert DIM not in terminal.type("hi\r")
        terminal.leave()
