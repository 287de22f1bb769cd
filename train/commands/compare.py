"""Compare runs as a sweep does: a table, and sweep.html, .csv, .md and .json in a new folder."""

from pathlib import Path

from rich import get_console

from niels_gpt.storage import find_unused_path
from train.cli.command import Parser
from train.cli.output import require_new_file
from train.report.findings import analyze_runs
from train.report.rows import read_runs
from train.report.tables import describe_row, draw_console_table
from train.report.write import write_report


def main() -> None:
    """Read the runs, print the table, write the report."""
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or a sweep's folder for all its jobs")
    parser.add_argument(
        "--out", type=require_new_file, metavar="FOLDER", help="a new folder (default compare, compare-2, ...)"
    )
    parser.add_argument(
        "--budget-gb", type=float, metavar="GIB", help="memory limit for the fastest run (default: none)"
    )
    options = parser.parse_args()
    if options.budget_gb is not None and not options.budget_gb > 0:
        parser.error("--budget-gb must be above 0")
    findings = analyze_runs(read_runs(options.runs), options.budget_gb)
    folder = options.out or find_unused_path("compare")
    folder.mkdir()
    write_report(folder, findings, f"{len(findings.rows)} runs compared")
    get_console().print(draw_console_table(findings, get_console().width))
    for row in findings.rows:
        if row.reason:
            print(describe_row(row))
    print(f"wrote {folder / 'sweep.html'}, and .csv, .md, .json beside it")
