"""Convert models for other programs, and older configs for this one: niels_gpt export and import-json."""

from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError
from train.cli.command import Parser, defer_signals
from train.commands.checkpoints import add_weight_flags, choose_weights, describe_weights
from train.config.legacy import describe_sources, format_experiment, plan_from_json
from train.config.suggest import CONF
from train.report.model_card import make_model_card

HF_DTYPES = ("float32", "bfloat16", "float16")
DTYPES = {"hf": HF_DTYPES, "gguf": (*HF_DTYPES, "q8_0")}
TO = "folder to write to (default: conf/experiment); any other must be named experiment, for --config-dir"


def run_export() -> None:
    """Export a trained model for other programs, with its tokenizer, chat template and a model card."""
    parser = Parser(description=run_export.__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a checkpoint in it")
    parser.add_argument("folder", type=Path, help="a new folder for the export")
    parser.add_argument(
        "--to", choices=DTYPES, default="hf", help="hf: Hugging Face's Llama (default); gguf: llama.cpp's"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES["gguf"], help="type of the weights (default float32, float16 for gguf)"
    )
    add_weight_flags(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the export with the run in transformers, mlx-lm or xllamacpp",
    )
    options = parser.parse_args()
    if options.dtype == "q8_0" and options.to == "hf":
        parser.error("--dtype q8_0 goes with --to gguf")
    dtype = options.dtype or ("float32" if options.to == "hf" else "float16")
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.chat import load_session
        from niels_gpt.weights.average import find_checkpoints
        from niels_gpt.weights.checkpoint import get_phase_folder
        from niels_gpt.weights.gguf import export_gguf
        from niels_gpt.weights.llama import export_llama
        from niels_gpt.weights.verify import verify_export

    choice = choose_weights(options)
    session = load_session(options.run, **choice)
    checkpoints = find_checkpoints(options.run, **choice)
    phase = get_phase_folder(checkpoints[0])
    model, tokenizer = session.model, session.tokenizer
    card = make_model_card(
        phase, model.cfg, model.parameter_count(), describe_weights(checkpoints, ema=options.ema)
    )
    more: Any = {"dtype": dtype, "chats": session.chats, "card": card}
    if options.to == "gguf":
        export_gguf(model, tokenizer, options.folder, phase.parent.resolve().name, **more)
    else:
        export_llama(model, tokenizer, options.folder, **more)
    print(f"wrote {options.folder}", flush=True)
    if options.verify:
        for line in verify_export(
            model, tokenizer, options.folder, to=options.to, dtype=dtype, chats=session.chats
        ):
            print(line, flush=True)


def run_import_json() -> None:
    """Turn an older JSON config into conf/experiment/NAME.yaml."""
    parser = Parser(description=run_import_json.__doc__)
    parser.add_argument("json", type=Path, help="the older config")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=Path("conf", "experiment"), help=TO)
    parser.add_argument("--name", help="name of the experiment and its runs (default: the file's)")
    options = parser.parse_args()
    plan = plan_from_json(options.json, options.name)
    target = options.to / f"{plan[0].name}.yaml"
    for path in (CONF / "experiment" / target.name, target):  # Hydra would take niels_gpt's own instead
        if path.exists():
            raise ConfigError(f"{path} already exists", "choose another name with --name")
    options.to.mkdir(parents=True, exist_ok=True)
    target.write_text(format_experiment(options.json, options.name), encoding="utf-8")
    print(f"wrote {target}; choose it with experiment={target.stem}")
    print(*describe_sources(plan), sep="\n")
