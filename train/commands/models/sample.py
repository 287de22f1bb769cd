"""Complete a prompt, answer a question, or chat with a trained model."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from niels_gpt.errors import CheckpointError, ConfigError
from niels_gpt.generation.sampling import Sampling
from niels_gpt.printable import escape_text
from niels_gpt.untrusted import UnreadableFile, explain_first_error, read_text
from train.cli.command import Parser, defer_signals
from train.cli.output import add_json_flag, report
from train.commands.models.chat import chat, print_tokens
from train.commands.models.weights import add_weight_flags, choose_weights

if TYPE_CHECKING:
    from niels_gpt.generation.chat import ChatSession
    from niels_gpt.generation.generate import Token

MAX_PROMPTS = 16 << 20  # bytes of a file


def main() -> None:
    """Load the best weights of the newest phase and print their answers."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a checkpoint in it")
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--prompt", metavar="TEXT", help="text to continue; after SFT, a question to answer")
    modes.add_argument("--prompts", metavar="FILE", type=Path, help="a file with a prompt in each line")
    modes.add_argument("--chat", action="store_true", help="chat; /help lists its commands")
    parser.add_argument("--system", metavar="TEXT", default="", help="system message of a chat or a question")
    add_sampling_flags(parser)
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: the log probability of each token, and of the N likeliest beside it (0 to 20)",
    )
    add_weight_flags(parser)
    add_json_flag(parser)
    options = parser.parse_args()
    if options.json and options.chat:
        parser.error("--json goes with --prompt TEXT or --prompts FILE")
    if options.logprobs is not None and not options.json:
        parser.error("--logprobs goes with --json")
    sampling = read_sampling(parser, options, alternatives=options.logprobs or 0)
    prompts = read_prompts(options.prompts) if options.prompts else [options.prompt]
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.chat import load_session

    session = load_session(options.run, **choose_weights(options))
    if not session.chats and (options.chat or options.system):
        unable = "cannot chat" if options.chat else "reads no system message"
        raise CheckpointError(
            f"{options.run} {unable}: it is only pretrained, or has another chat template than ours",
            "use --prompt, or train phase=sft",
        )
    session.system = options.system
    if options.chat:
        chat(session, sampling)
        return

    def answer() -> dict[str, Any]:
        with_logprobs = options.logprobs is not None
        answers = [answer_prompt(session, prompt, sampling, with_logprobs) for prompt in prompts]
        return {"run": str(options.run)} | ({"answers": answers} if options.prompts else answers[0])

    report(options.json, answer)


def add_sampling_flags(parser: ArgumentParser) -> None:
    """Add a flag for each setting of Sampling but the alternatives, for `read_sampling`."""
    for name, field in Sampling.model_fields.items():
        flag, words = "--" + name.replace("_", "-"), f"{field.description} (default {field.default})"
        if name == "stop":
            words = f"{field.description}; may be repeated"
            parser.add_argument(flag, action="append", default=[], metavar="TEXT", help=words)
        elif field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=field.description)
        elif name != "alternatives":
            number = int if field.annotation is int else float
            parser.add_argument(flag, type=number, default=field.default, metavar="N", help=words)


def read_sampling(parser: ArgumentParser, options: Namespace, **others: Any) -> Sampling:
    """Return the settings that the flags and `others` stand for, or end with an error of the parser."""
    given = {name: value for name, value in vars(options).items() if name in Sampling.model_fields}
    try:
        return Sampling.model_validate(given | others)
    except ValidationError as error:
        where, reason = explain_first_error(error)
        parser.error(f"--{where.replace('alternatives', 'logprobs').replace('_', '-')} {reason}")


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a file that are not blank. ConfigError if there are none, or it cannot be read."""
    try:
        lines = [line for line in read_text(path, MAX_PROMPTS).splitlines() if line.strip()]
    except UnreadableFile as error:
        raise ConfigError(str(error), "--prompts reads a text file with a prompt in each line") from None
    if not lines:
        raise ConfigError(f"{path} has no prompts", "write a prompt in each line")
    return lines


def answer_prompt(session: "ChatSession", prompt: str, sampling: Sampling, with_logprobs: bool) -> dict[str, Any]:
    """Print a prompt and its answer as it comes, and return it with its length and time."""
    began = time.perf_counter()
    if session.chats:
        print(f"you: {escape_text(prompt)}")
        tokens = print_tokens("model: ", session.chat(session.system).stream_reply(prompt, sampling))
    else:
        tokens = print_tokens(escape_text(prompt), session.stream_completion(prompt, sampling))
    answer = {
        "prompt": prompt,
        "text": "".join(token.text for token in tokens),
        "finish_reason": tokens[-1].finish_reason,
        "tokens": len(tokens),
        "dropped_tokens": session.generator.window.dropped,
        "seconds": round(time.perf_counter() - began, 4),
    }
    return answer | ({"logprobs": [*map(describe_token, tokens)]} if with_logprobs else {})


def describe_token(token: "Token") -> dict[str, Any]:
    """Return a token for JSON."""
    likely = [dict(zip(("id", "text", "logprob"), other, strict=True)) for other in token.alternatives]
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "alternatives": likely}
