"""Compare runs as a sweep does: a table, and sweep.html, .csv, .md and .json in a new folder."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from niels_gpt.errors import ConfigError
from niels_gpt.storage import find_unused_path, measure_size
from train.cli.command import Parser
from train.cli.output import add_json_flag, format_table, report, require_new_file
from train.config.suggest import name_train_command
from train.report.findings import analyze_runs
from train.report.rows import find_runs, read_row, read_runs
from train.report.tables import describe_row, draw_console_table
from train.report.write import list_findings, write_report

RUNS = Path("runs")


def main() -> None:
    """Compare the runs that are named, or list those in runs/."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="run folders, or a sweep's folder for all its jobs; none lists runs/"
    )
    parser.add_argument(
        "--out", type=require_new_file, metavar="FOLDER", help="a new folder (default compare, compare-2, ...)"
    )
    parser.add_argument(
        "--budget-gb", type=float, metavar="GIB", help="memory limit for the fastest run (default: none)"
    )
    add_json_flag(parser)
    options = parser.parse_args()
    if options.budget_gb is not None and not options.budget_gb > 0:
        parser.error("--budget-gb must be above 0")
    if not options.runs and (options.out or options.budget_gb):
        parser.error("--out and --budget-gb go with run folders")
    report(options.json, lambda: compare_runs(options) if options.runs else list_runs(find_runs(RUNS)))


def compare_runs(options: Namespace) -> dict[str, Any]:
    """Print the table of the runs, write the report, and return what sweep.json has."""
    findings = analyze_runs(read_runs(options.runs), options.budget_gb)
    title = f"{len(findings.rows)} runs compared"
    get_console().print(draw_console_table(findings, get_console().width))
    for row in findings.rows:
        if row.reason:
            print(describe_row(row))
    if options.out or not options.json:
        folder = options.out or find_unused_path("compare")
        folder.mkdir()
        write_report(folder, findings, title)
        print(f"wrote {folder / 'sweep.html'}, and .csv, .md, .json beside it")
    return list_findings(findings, title)


def list_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Print a line for each run, and return what the lines say; bits per byte are the best of the last phase."""
    if not folders:
        raise ConfigError(f"there are no runs in {RUNS.resolve()}", f"{name_train_command()} makes one")
    runs = [summarize_run(folder) for folder in folders]
    lines = [("run", "phase", "steps", "bits per byte", "MB", "state")]
    for run in runs:
        steps = " + ".join(map(str, run["steps"].values()))
        bits = "" if run["bits_per_byte"] is None else f"{run['bits_per_byte']:.3f}"
        lines.append(
            (run["run"], " + ".join(run["steps"]), steps, bits, f"{run['bytes'] / 1e6:,.1f}", run["state"])
        )
    print(format_table(lines, right=(2, 3, 4)), end="")
    return runs


def summarize_run(folder: Path) -> dict[str, Any]:
    """Return what a list of runs says of one, in any state."""
    row = read_row(folder)
    bits = [min(point.loss for point in curve.val) * curve.bits for curve in row.curves.values() if curve.val]
    return {
        "run": row.folder,
        "steps": {phase: curve.step for phase, curve in row.curves.items()},
        "bits_per_byte": bits[-1] if bits else None,
        "bytes": measure_size(folder),
        "state": row.status,
    }
