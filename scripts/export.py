"""Export a trained model for programs that know Llama."""

import _root  # noqa: F401  isort: skip
from pathlib import Path

from train.cli.command import Parser, command, defer_signals


def main() -> None:
    """Write the export folder."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, as runs/default, or a checkpoint in it")
    parser.add_argument("folder", type=Path, help="a new folder for the export")
    options = parser.parse_args()
    with defer_signals():  # torch is imported only now
        from niels_gpt.generation.chat import load_speaker
        from niels_gpt.weights.llama import export_llama

    speaker = load_speaker(options.run)
    export_llama(speaker.model, speaker.tokenizer, options.folder)
    print(f"wrote {options.folder}")


if __name__ == "__main__":
    command(main)
