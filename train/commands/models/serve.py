"""Serve trained models to OpenAI's clients, and to a chat page in the browser."""

import ipaddress
import os
import sys
from collections import Counter
from pathlib import Path

from niels_gpt.errors import ConfigError, Interrupted
from niels_gpt.printable import escape_line
from train.artifacts.results import read_results
from train.cli.command import Parser, at_least, defer_signals
from train.cli.signals import stop_on_signals
from train.commands.models.weights import add_weight_flags, choose_weights
from train.report.rows import PHASES, is_run, read_row

KEY = "NIELS_API_KEY"


def main() -> None:
    """Load the models, and answer requests until a signal comes."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "models", nargs="+", type=Path, metavar="RUN", help="a run folder, a checkpoint or an exported folder"
    )
    parser.add_argument(
        "--name", action="append", default=[], help="the model's name (default: its folder's); once per model"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=at_least(0), default=8000, help="the port (default 8000; 0: any free one)")
    parser.add_argument("--api-key", metavar="KEY", help=f"clients must send this key (default: ${KEY})")
    parser.add_argument("--queue", type=at_least(1), default=32, help="requests that may wait (default 32)")
    parser.add_argument("--timeout", type=at_least(1), default=120, help="seconds for an answer (default 120)")
    add_weight_flags(parser)
    options = parser.parse_args()
    if options.port > 65535:
        parser.error("--port must be 0 to 65535")
    key = os.environ.get(KEY, "") if options.api_key is None else options.api_key
    if not key.isascii() or not key.isprintable() or (options.api_key == ""):
        parser.error("the API key must be printable ASCII, and not empty")
    names = name_models(options.models, options.name)
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.generate import Generator
        from niels_gpt.serving.app import LOCAL_HOSTS, ServedModel, make_app
        from niels_gpt.serving.server import open_socket, run_server
        from niels_gpt.serving.worker import Worker
        from niels_gpt.weights.trained_model import open_model
    listening = open_socket(options.host, options.port)
    models = []
    for name, path in zip(names, options.models, strict=True):
        chosen = choose_weights(options)
        model, tokenizer, chats = open_model(path, **chosen)[:3]
        details = {"best_val_loss": None if any(chosen.values()) else read_loss(path)}
        models.append(ServedModel(name, Generator(model, tokenizer), chats, details))
    local = is_loopback(options.host)
    if not local:
        print(
            f"warning: other machines can reach {options.host}; the connection is not encrypted", file=sys.stderr
        )
        if not key:
            print(f"warning: anyone who reaches it can use it; set --api-key or {KEY}", file=sys.stderr)
    worker = Worker(options.queue)
    host = f"[{options.host}]" if ":" in options.host else options.host
    hosts = (*LOCAL_HOSTS, host.lower()) if local and not key else ("*",)
    app = make_app(models, worker, api_key=key, hosts=hosts, seconds=options.timeout)
    worker.start()
    with stop_on_signals() as stop:
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"serving {', '.join(names)} at {url} (OpenAI's API: {url}/v1); Ctrl-C stops", flush=True)
        run_server(app, worker, listening, stop)
    if stop.signum is not None:
        raise Interrupted("the server stopped", "answers in progress were ended", stop.signum)


def read_loss(path: Path) -> float | None:
    """Return the best validation loss of a finished run, or of a run's phase; None for anything else."""
    path = path.absolute()
    if path.name in PHASES and (result := read_results(path.parent).get(path.name)):
        return result.best_val_loss
    return read_row(path).val_loss if is_run(path) else None


def name_models(paths: list[Path], given: list[str]) -> list[str]:
    """Return a name for each model: the given ones, then those of the run folders, with the part of the run."""
    if len(given) > len(paths):
        raise ConfigError(f"{len(given)} names for {len(paths)} models", "give --name at most once per model")
    if "" in given:
        raise ConfigError("--name is empty", "leave it out, or give the name that clients ask for")
    names = []
    for path in map(Path, map(os.path.abspath, paths)):
        parts = 3 if path.suffix == ".pt" else 2 if path.name in PHASES else 1
        names.append(escape_line("/".join(path.parts[-parts:])))
    names[: len(given)] = given
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"two models have the name {double[0]}", "tell them apart by --name A --name B")
    return names


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
