"""Render a report as one HTML page."""

from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.report.figures import choose_line_styles, draw_losses, draw_speed_against_memory
from train.report.findings import DIVERGED, Findings
from train.report.rows import PHASES
from train.report.tables import PEAK_NOTE, choose_columns, format_cells, format_facts

MARKS = {  # a sign and a colour for each status
    "finished": ("✓", "good"),
    "running": ("▸", "busy"),
    "waiting": ("·", "idle"),
    "interrupted": ("‖", "idle"),
    "failed": ("✗", "bad"),
    "killed": ("✗", "bad"),
    "timed out": ("✗", "bad"),
    "unreadable": ("?", "bad"),
}


def render_page(findings: Findings, title: str) -> str:
    """Return the page; text from the disk is escaped, and nothing is fetched from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = choose_line_styles(findings)
    statuses = [row.status for row in findings.rows]
    losses = {phase: [Markup(img) for img in draw_losses(findings, phase, styles)] for phase in PHASES}  # noqa: S704
    return environment.get_template("sweep.html").render(
        **vars(findings),
        title=title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        columns=[column for column in choose_columns(findings.rows) if column.key != "overrides"],
        cells={row: format_cells(row) for row in findings.rows},
        counts={status: statuses.count(status) for status in MARKS if status in statuses},
        marks=MARKS,
        styles=styles,
        facts={row: format_facts(row) for row in findings.rows},
        peak_note=PEAK_NOTE,
        diverged_note=DIVERGED,
        speed=Markup(draw_speed_against_memory(findings, styles)),  # noqa: S704  an image of ours, as data
        losses={phase: images for phase, images in losses.items() if images},
    )
