"""Complete a prompt, answer a question, or chat with a trained model."""

import math
from collections.abc import Iterator
from pathlib import Path

from niels_gpt.errors import CheckpointError
from niels_gpt.printable import escape_text
from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_json_flag, report
from train.commands.weights import add_weight_flags, choose_weights

SEEDS = 2**64  # that torch can tell apart


def main() -> None:
    """Load the best weights of the newest phase and print their answers."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a checkpoint in it")
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue; after SFT, a question to answer")
    parser.add_argument("--chat", action="store_true", help="chat until an empty line")
    parser.add_argument("--max-tokens", type=at_least(1), default=200, help="longest answer (default 200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 picks the likeliest token (default 0.7)")
    parser.add_argument("--top-k", type=at_least(1), default=50, help="sample from the K likeliest (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling (default 0)")
    add_weight_flags(parser)
    add_json_flag(parser)
    options = parser.parse_args()
    if options.chat == (options.prompt is not None):
        parser.error("give either --prompt TEXT or --chat")
    if options.chat and options.json:
        parser.error("--json goes with --prompt TEXT")
    if not 0 <= options.temperature < math.inf:
        parser.error("--temperature must be at least 0 and finite")
    if not 0 <= options.seed < SEEDS:
        parser.error("--seed must be 0 to 2**64 - 1")
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.chat import load_session

    session = load_session(options.run, **choose_weights(options))
    sampling = {name: vars(options)[name] for name in ("max_tokens", "temperature", "top_k", "seed")}

    def answer() -> dict[str, str]:
        if session.chats:
            print(f"you: {escape_text(options.prompt)}")
            text = print_stream("model: ", session.reply(options.prompt, **sampling))
        else:
            text = print_stream(options.prompt, session.complete(options.prompt, **sampling))
        return {"run": str(options.run), "prompt": options.prompt, "text": text}

    if options.prompt is not None:
        report(options.json, answer)
    elif not session.chats:
        raise CheckpointError(
            f"{options.run} cannot chat: it is only pretrained, or has another chat template than ours",
            "use --prompt, or train phase=sft",
        )
    else:
        print("An empty line, Ctrl-D or Ctrl-C ends the chat.")
        try:
            while question := input("you: ").strip():
                print_stream("model: ", session.reply(question, **sampling))
        except (EOFError, KeyboardInterrupt):
            print()


def print_stream(start: str, pieces: Iterator[str]) -> str:
    """Print pieces of text as they come, after a start of the line; return what they make together."""
    whole = ""
    print(escape_text(start), end="", flush=True)
    for piece in pieces:
        print(escape_text(piece), end="", flush=True)
        whole += piece
    print()
    return whole
