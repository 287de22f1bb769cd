"""Render a report as one HTML page."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.report.figures import losses, pens, speed_against_memory
from train.report.findings import best, caveats, differing, labels, pareto_front, sentence, splits
from train.report.rows import PHASES, Row
from train.report.tables import PEAK, cells, columns_of, facts

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {  # a status is told by a word, a sign and a colour
    "finished": ("✓", "good"),
    "running": ("▸", "busy"),
    "waiting": ("·", "idle"),
    "interrupted": ("‖", "idle"),
    "failed": ("✗", "bad"),
    "killed": ("✗", "bad"),
    "timed out": ("✗", "bad"),
    "unreadable": ("?", "bad"),
}


def as_page(rows: Sequence[Row], title: str, budget_gb: float | None) -> str:
    """Return the page; what comes from the disk is escaped, and nothing is fetched from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = {row: number for number, row in enumerate(rows, 1)}
    return environment.get_template("sweep.html").render(
        title=title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        numbers=numbers,
        labels=labels(rows),
        columns=columns_of(rows),
        cells={row: cells(row) for row in rows},
        counts=counts(rows),
        marks=MARKS,
        best=best(rows, budget_gb),
        front=pareto_front(rows),
        pens=pens(rows),
        splits={sentence(split, rows): split.coincide for split in splits(rows)},
        facts=facts,
        peak=PEAK,
        caveats=caveats(rows),
        differing=differing(rows),
        speed=Markup(speed_against_memory(rows, budget_gb)),  # noqa: S704  an image of ours, as data
        losses={phase: [Markup(i) for i in made] for phase in PHASES if (made := losses(rows, phase))},  # noqa: S704
    )


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return how many runs stand how, in the order of the statuses."""
    of = [row.status for row in rows]
    return {status: of.count(status) for status in MARKS if status in of}
