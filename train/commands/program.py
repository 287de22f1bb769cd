"""The program niels_gpt: a table of sub-commands, each imported only when it is called, and their completion."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

USAGE = "usage: niels_gpt COMMAND ..."
COMMANDS = {
    "train": ("train a model, continue a run, or sweep over settings", "train.commands.train:main"),
    "prepare": ("tokenize a run's data, and show what is in it", "train.commands.prepare:main"),
    "sample": ("complete a prompt, answer a question, or chat", "train.commands.models.sample:main"),
    "serve": ("serve models to OpenAI's clients and in the browser", "train.commands.models.serve:main"),
    "eval": ("measure models on text or questions, side by side", "train.commands.models.evaluate:main"),
    "compare": ("compare runs, or list those in runs/", "train.commands.compare:main"),
    "checkpoints": (
        "list a run's checkpoints: step, loss, size, damage",
        "train.commands.models.weights:run_checkpoints",
    ),
    "export": ("export a trained model for other programs", "train.commands.models.weights:run_export"),
    "doctor": ("examine this machine: precision, speed, memory", "train.commands.measure:run_doctor"),
    "numerics": ("compare precisions on a step of a trained run", "train.commands.measure:run_numerics"),
    "bench": ("measure training steps", "train.commands.measure:run_bench"),
    "cache": ("show the token caches, and remove old ones", "train.commands.cache:main"),
    "completion": ("print the completion of bash or zsh", "train.commands.program:print_completion"),
    "import-json": ("turn an older JSON config into an experiment", "train.commands.train:run_import_json"),
}
FOOTER = "niels_gpt COMMAND --help explains a command, niels_gpt --version prints the version."

# Where nothing fits, -o default gives file names. Bash replaces only what follows a = in COMP_WORDBREAKS. Names of
# files in ./conf may be from others, so no choice is expanded, as compgen -W would.
COMPLETION = r"""
_niels_gpt() {
    local line="${COMP_LINE:0:$COMP_POINT}" choices choice
    local word="${line##* }"
    case "$line" in
        "niels_gpt train "* | "niels_gpt prepare "* | "niels_gpt doctor "*)
            choices="$(COMP_LINE="niels_gpt ${line#niels_gpt * }" niels_gpt train -sc query=bash 2> /dev/null)" ;;
        "niels_gpt "*" "*) return ;;
        *)
            choices="@COMMANDS@"
            compopt +o nospace 2> /dev/null ;;
    esac
    COMPREPLY=()
    while read -r -d ' ' choice; do
        [[ -n "$choice" && "$choice" == "$word"* ]] && COMPREPLY+=("$choice")
    done <<< "$choices "
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -o nospace -o default -F _niels_gpt niels_gpt
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
autoload -Uz bashcompinit && bashcompinit
"""


def main(words: Sequence[str] | None = None) -> None:
    """Run the sub-command that the command line names."""
    # Until train.cli.command handles signals, exit with the usual code and no traceback of the imports.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda number, _: os._exit(128 + number))
    command, *rest = words or sys.argv[1:] or ["--help"]
    if command.startswith("-"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has gone ends it without a traceback
    if command in ("-h", "--help"):
        rows = [f"  {name:<13}{meaning}" for name, (meaning, _) in COMMANDS.items()]
        print("\n".join([USAGE, "", "Train small GPTs from scratch.", "", *rows, "", FOOTER]))
    elif command == "--version":
        from importlib.metadata import version

        print(f"niels_gpt {version('niels_gpt')}")
    elif command in COMMANDS:
        from train.cli.command import run_command

        module, _, function = COMMANDS[command][1].partition(":")
        sys.argv = [f"niels_gpt {command}", *rest]
        run_command(getattr(import_module(module), function), outlives_readers=command == "train")
    else:
        refuse(command)


def refuse(command: str) -> None:
    """Exit with code 2 and the likeliest sub-command."""
    from difflib import get_close_matches

    alike = ["train"] if "=" in command else get_close_matches(command, COMMANDS, n=1)
    print(f"error: niels_gpt has no command {command!r}", file=sys.stderr)
    print(f"hint: {f'did you mean niels_gpt {alike[0]}? ' if alike else ''}niels_gpt --help", file=sys.stderr)
    raise SystemExit(2)


def print_completion() -> None:
    """Print the completion of bash or zsh: add `eval "$(niels_gpt completion bash)"` to ~/.bashrc."""
    from train.cli.command import Parser

    parser = Parser(description=print_completion.__doc__)
    parser.add_argument("shell", choices=["bash", "zsh"])
    shell = parser.parse_args().shell
    print((ZSH if shell == "zsh" else "") + COMPLETION.replace("@COMMANDS@", " ".join(COMMANDS)), end="")
