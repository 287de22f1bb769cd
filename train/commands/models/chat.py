"""Chat in a terminal: answers stream, lines that begin with / are commands."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich import get_console

from niels_gpt.data.readers.records import Message
from niels_gpt.errors import ConfigError, NielsError
from niels_gpt.generation.sampling import Sampling
from niels_gpt.printable import escape_text
from niels_gpt.storage import write_text
from niels_gpt.untrusted import explain_first_error
from train.artifacts.disk import make_disk_error
from train.cli.output import require_new_file

if TYPE_CHECKING:
    from niels_gpt.generation.chat import ChatSession
    from niels_gpt.generation.generate import Token

USAGE = "/help lists the commands, Ctrl-D ends the chat"
QUOTES = '"""'  # around text of several lines, as in Ollama
HISTORY = 1000  # lines to keep


class Chat:
    """A conversation on stdin and stdout."""

    def __init__(self, session: "ChatSession", sampling: Sampling) -> None:
        self.session, self.sampling = session, sampling
        self.interactive = sys.stdin.isatty()
        self._question, self._start = "", 0  # the last one, and its place in the conversation
        self._stopped: bool | None = None  # by Ctrl-C; None between answers
        self._pressed = False  # Ctrl-C, after the last line

    def run(self) -> None:
        """Answer until the input ends, or Ctrl-C is pressed twice between answers, with nothing typed between."""
        while True:
            try:
                self._act(self._read())
            except KeyboardInterrupt:
                readline = sys.modules.get("readline")
                if self._pressed and not (readline and readline.get_line_buffer()):
                    break
                self._pressed = True
                print("\npress Ctrl-C again to end the chat")
            except NielsError as error:
                print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
            except EOFError:
                break
        if self.interactive:
            print()

    def handle_interrupt(self, *_: Any) -> None:
        """Stop the answer after its current token; between answers, raise KeyboardInterrupt."""
        if self._stopped is None:
            raise KeyboardInterrupt
        self._stopped = True

    def _read(self) -> str:
        text = self._read_line("you: ")
        if opened := re.match(rf"\s*(/\w+\s+)?{QUOTES}", text):
            with suppress(EOFError):
                while QUOTES not in text[opened.end() :]:
                    text += "\n" + self._read_line("...  ")
        return text.strip()

    def _read_line(self, prompt: str) -> str:
        line = input(prompt if self.interactive else "")
        self._pressed = False
        if not self.interactive:
            print(prompt + escape_text(line))
        return line

    def _act(self, line: str) -> None:
        name, *argument = line.split(maxsplit=1) or [""]
        if name in COMMANDS:
            COMMANDS[name][2](self, unquote("".join(argument)))
        elif name.startswith("/"):
            raise ConfigError(f"there is no command {name}", f"the commands are {', '.join(COMMANDS)}")
        elif question := unquote(line):
            self._ask(question)

    def _ask(self, question: str) -> None:
        self._question, self._start = question, len(self.session.conversation)
        self._stopped, began = False, time.perf_counter()
        try:
            stream = self.session.stream_reply(question, self.sampling)
            tokens = print_tokens("model: ", stream, lambda: bool(self._stopped))
        finally:
            self._stopped = None
        if sys.stdout.isatty():
            speed, used = len(tokens) / (time.perf_counter() - began), len(self.session.generator.cache.ids)
            line = f"{len(tokens)} tokens, {speed:,.0f} tokens/s, context {used} of {self.session.model.cfg.T}"
            line += ", cut at max_tokens" * (tokens[-1].finish_reason == "length")
            get_console().print(line, style="" if get_console().no_color else "dim", highlight=False)

    def _set_system(self, text: str) -> None:
        if text:  # answers to another system message would mislead
            self.session.system = "" if text == '""' else text
            return self._reset(text)
        print(escape_text(self.session.system) or "there is no system message")

    def _reset(self, _: str) -> None:
        self.session.conversation.clear()
        self._question, self._start = "", 0
        print("the conversation starts again")

    def _retry(self, _: str) -> None:
        if not self._question:
            raise ConfigError("there is no question to answer again", "ask one first")
        if self.sampling.temperature == 0:
            raise ConfigError("at temperature 0 each answer is the same", "/temp 0.7 gives others")
        del self.session.conversation[self._start :]
        self.sampling = self.sampling.model_copy(update={"seed": (self.sampling.seed + 1) % 2**64})
        self._ask(self._question)

    def _save(self, text: str) -> None:
        if not text or not self.session.conversation:
            reason = "there is nothing to save" if text else "no file is named"
            raise ConfigError(reason, "ask a question, then /save chat.jsonl")
        path = require_new_file(os.path.expanduser(text))
        system = [Message("system", self.session.system)] if self.session.system else []
        row = [{"role": turn.role, "content": turn.content} for turn in [*system, *self.session.conversation]]
        try:
            write_text(path, json.dumps({"messages": row}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise make_disk_error(error) from None
        print(f"wrote {escape_text(str(path))}")

    def _set(self, text: str) -> None:
        name, _, given = text.partition(" ")
        name, settings = name.replace("-", "_"), self.sampling.model_dump(exclude={"alternatives"})
        if name and name not in settings:
            raise ConfigError(f"there is no setting {name}", f"the settings are {', '.join(settings)}")
        if given:
            with suppress(ValueError):  # text needs no quotes
                given = json.loads(given)
            try:
                self.sampling = Sampling.model_validate(settings | {name: given})
            except ValidationError as error:
                raise ConfigError(f"{name}: {explain_first_error(error)[1]}", "/set shows the settings") from None
        for shown in [name] if name else settings:
            print(shown, json.dumps(getattr(self.sampling, shown)))

    def _help(self, _: str) -> None:
        for name, (argument, meaning, _function) in COMMANDS.items():
            print(f"{name + ' ' + argument:<18}{meaning}")
        print(f"{QUOTES:<18}begins and ends text of several lines\nCtrl-C            stops an answer")

    def _quit(self, _: str) -> None:
        raise EOFError


COMMANDS: dict[str, tuple[str, str, Callable[[Chat, str], None]]] = {
    "/system": ("TEXT", 'starts again with a system message ("": none); alone, shows it', Chat._set_system),
    "/reset": ("", "starts again: forgets the conversation", Chat._reset),
    "/retry": ("", "gives another answer to the last question, with the next seed", Chat._retry),
    "/save": ("FILE", "writes the conversation to a new file that data=jsonl can train on", Chat._save),
    "/temp": ("VALUE", "sets the temperature", lambda chat, text: chat._set(f"temperature {text}")),
    "/set": ("NAME VALUE", "changes a setting of sampling; alone, shows them", Chat._set),
    "/help": ("", "lists the commands", Chat._help),
    "/quit": ("", "ends the chat, as Ctrl-D does", Chat._quit),
}


def chat(session: "ChatSession", sampling: Sampling) -> None:
    """Chat until the input ends or the user does. On a terminal there are arrow keys and Ctrl-C."""
    talk = Chat(session, sampling)
    if not talk.interactive:
        return talk.run()
    print(USAGE)
    signal.signal(signal.SIGINT, talk.handle_interrupt)
    with keep_history():
        talk.run()


@contextmanager
def keep_history() -> Iterator[None]:
    """Let arrow keys recall lines, those of earlier chats too, as far as this machine can."""
    state = os.path.expanduser(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    path = Path(state, "niels_gpt", "chat_history")
    try:
        import readline
    except ImportError:
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")  # which keeps pasted lines together
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.set_history_length(HISTORY)
            readline.write_history_file(path)  # with mode 0600


def print_tokens(
    start: str, stream: Iterator["Token"], is_stopped: Callable[[], bool] = lambda: False
) -> list["Token"]:
    """Print an answer as it comes, after `start`, until it ends or is stopped; return its tokens."""
    tokens: list[Token] = []
    try:
        for token in stream:
            print(start + escape_text(token.text), end="", flush=True)
            start = ""
            tokens.append(token)
            if is_stopped():
                break
    finally:
        if tokens:  # so that the reason for an early end has a line of its own
            print(flush=True)
    return tokens


def unquote(text: str) -> str:
    """Return text without the quotes around it."""
    return text.replace(QUOTES, "").strip() if text.startswith(QUOTES) else text
