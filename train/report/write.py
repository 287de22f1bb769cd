"""Write the report of a sweep from its run folders: sweep.html, .csv, .md and .json."""

import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from niels_gpt.storage import write_text
from train.cli.output import format_json
from train.report.findings import DIVERGED, Findings, analyze_runs
from train.report.page import render_page
from train.report.rows import read_rows
from train.report.tables import PEAK_NOTE, escape_markdown, format_csv, format_markdown, list_values

REWRITE_EVERY = 10.0  # seconds: a sweep of N short jobs must not read N rows N times


def rewrite_report(folder: Path, budget_gb: float | None) -> Findings:
    """Write the report of a sweep's folder as its runs stand now; several processes may do so at once."""
    with FileLock(folder / ".sweep.lock"):  # the last writer has read the latest state
        findings = analyze_runs(read_rows(folder), budget_gb)
        write_report(folder, findings, folder.resolve().name)
    return findings


def is_recent(folder: Path) -> bool:
    """Return whether the report of a sweep was written less than `REWRITE_EVERY` ago."""
    written = [path.stat().st_mtime for path in folder.glob("sweep.json")]
    return bool(written) and 0 <= time.time() - written[0] < REWRITE_EVERY


def write_report(folder: Path, findings: Findings, title: str) -> None:
    """Write a report into a folder."""
    write_text(folder / "sweep.html", render_page(findings, title))
    write_text(folder / "sweep.csv", format_csv(findings.rows))
    write_text(folder / "sweep.md", format_note(findings, title))
    write_text(folder / "sweep.json", format_json(list_findings(findings, title)))


def format_note(findings: Findings, title: str) -> str:
    """Return the report in Markdown: the best with their commands, what was found, the table."""
    parts = [f"# {escape_markdown(title)}"]
    for best in findings.best:
        ties = "".join(f", as has {row.name}" for row in best.ties)
        tokens = f" after {best.row.tokens:,} tokens" if best.row and best.row.tokens else ""
        text = escape_markdown(f"{best.row.name}, {best.why}{tokens}{ties}" if best.row else f"{best.why}.")
        parts.append(f"**{best.title}**: {text}" + (f"\n\n    {best.row.command}" if best.row else ""))
    parts += map(escape_markdown, [*findings.caveats, *(equal.sentence for equal in findings.equal_training)])
    if findings.diverged:
        parts.append(f"Diverged: {escape_markdown(', '.join(row.name for row in findings.diverged))}. {DIVERGED}")
    return "\n\n".join([*parts, format_markdown(findings), f"{PEAK_NOTE}\n"])


def list_findings(findings: Findings, title: str) -> dict[str, Any]:
    """Return the report for programs, as plain values."""
    return {
        "title": title,
        "memory_budget_gb": findings.budget_gb,
        "best": [
            {"title": b.title, "why": b.why, "job": b.row and b.row.name, "command": b.row and b.row.command}
            | {"ties": [row.name for row in b.ties]}
            for b in findings.best
        ],
        "diverged": [row.name for row in findings.diverged],
        "pareto_front": [row.name for row in findings.front],
        "caveats": findings.caveats,
        "equal_training": [vars(equal) for equal in findings.equal_training],
        "differing_settings": findings.differing,
        "rows": [list_values(row) | {"folder": row.folder, "command": row.command} for row in findings.rows],
    }
