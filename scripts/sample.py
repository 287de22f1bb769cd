"""Complete a prompt, answer a question, or chat with a trained model."""

import _root  # noqa: F401  isort: skip
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from niels_gpt.errors import CheckpointError
from niels_gpt.printable import escape_text
from train.cli.command import Parser, at_least, defer_signals, run_command

SEEDS = 2**64  # that torch can tell apart


def main() -> None:
    """Load the best weights of the newest phase and print their answers."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a checkpoint in it")
    parser.add_argument("--prompt", help="a text to continue; after SFT, a question to answer")
    parser.add_argument("--chat", action="store_true", help="chat interactively; an empty line quits")
    parser.add_argument("--max-tokens", type=at_least(1), default=200, help="longest answer (default 200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the best token (default 0.7)")
    parser.add_argument("--top-k", type=at_least(1), default=50, help="sample from the K likeliest (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling (default 0)")
    options = parser.parse_args()
    if options.chat == (options.prompt is not None):
        parser.error("give one of --prompt TEXT and --chat")
    if not 0 <= options.temperature < math.inf:
        parser.error("--temperature must be at least 0 and finite")
    if not 0 <= options.seed < SEEDS:
        parser.error("--seed must be 0 to 2**64 - 1")
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.chat import load_session

    session = load_session(options.run)
    sampling = {name: vars(options)[name] for name in ("max_tokens", "temperature", "top_k", "seed")}
    if options.prompt is not None:
        say = session.reply if session.chats else session.complete
        print_stream(say(options.prompt, **sampling))
        return
    if not session.chats:
        raise CheckpointError(
            f"{options.run} is pretrained only: it cannot chat", "use --prompt, or train phase=sft"
        )
    with suppress(EOFError):
        while question := input("you: ").strip():
            print_stream(session.reply(question, **sampling))


def print_stream(pieces: Iterator[str]) -> None:
    """Print pieces of text as they come."""
    for piece in pieces:
        print(escape_text(piece), end="", flush=True)
    print()


if __name__ == "__main__":
    run_command(main)
