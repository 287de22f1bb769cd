"""Export a trained model in the Llama format, for other programs."""

from pathlib import Path

from train.cli.command import Parser, defer_signals


def main() -> None:
    """Write the export folder."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a checkpoint in it")
    parser.add_argument("folder", type=Path, help="a new folder for the export")
    options = parser.parse_args()
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.generation.chat import load_session
        from niels_gpt.weights.llama import export_llama

    session = load_session(options.run)
    export_llama(session.model, session.tokenizer, options.folder)
    print(f"wrote {options.folder}")
