"""What a report finds in its rows is right: the best, the Pareto front, what differs, equal training."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.made_runs import made_run, row, write_metrics, write_result

from niels_gpt.errors import NonFiniteError
from train.report.figures import choose_line_styles, draw_losses
from train.report.findings import BestRun, EquivalentRuns, analyze_runs
from train.report.rows import Row, read_row
from train.report.write import rewrite_report

LOSS = st.none() | st.floats(0, 10)
STATUS = st.sampled_from(["finished", "finished", "failed", "running"])


def best(made: list[Row], budget: float | None) -> list[BestRun]:
    return analyze_runs(made, budget).best


def equal_training(made: list[Row]) -> list[EquivalentRuns]:
    return analyze_runs(made, None).equal_training


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Rows of few distinct speeds and memories, so that they tie often."""
    speed, memory = st.none() | st.sampled_from([1.0, 2.0, 3.0]), st.none() | st.integers(1, 4)
    made = st.builds(lambda *cells: cells, LOSS, speed, memory, STATUS)
    return [row(str(n), *cells[:3], status=cells[3]) for n, cells in enumerate(draw(st.lists(made, max_size=12)))]


@given(rows())
def test_the_front_is_every_run_that_no_other_one_beats(made: list[Row]) -> None:
    found = analyze_runs(made, None)
    able = [r for r in made if r.status == "finished" and r.tokens_per_second and r.peak_memory_gib]
    at = {r: (r.tokens_per_second or 0.0, -(r.peak_memory_gib or 0)) for r in able}
    unbeaten = [
        r
        for r in able
        if not any(a >= b and c >= d and (a, c) != (b, d) for a, c in at.values() for b, d in [at[r]])
    ]
    front = found.front
    assert found.measured == able and set(front) == set(unbeaten) and len(front) == len(unbeaten)
    assert [r.peak_memory_gib for r in front] == sorted(r.peak_memory_gib or 0 for r in front)


@given(rows(), st.none() | st.sampled_from([1.5, 3]))
def test_the_best_are_finished_and_none_is_better(made: list[Row], budget: float | None) -> None:
    lowest, fastest = best(made, budget)
    losses = [r.val_loss for r in made if r.status == "finished" and r.val_loss is not None]
    assert (lowest.row is None) == (not losses)
    if lowest.row:
        assert lowest.row.status == "finished"
        assert lowest.row.val_loss == min(losses)
    if fastest.row:
        fitting = [
            r for r in analyze_runs(made, None).measured if budget is None or (r.peak_memory_gib or 0) <= budget
        ]
        assert fastest.row.status == "finished"
        assert all((r.tokens_per_second or 0) <= (fastest.row.tokens_per_second or 0) for r in fitting)


def test_the_fastest_keeps_to_the_budget_and_if_none_does_the_least_is_named() -> None:
    made = [row("big", speed=9.0, memory=4), row("small", speed=5.0, memory=2), row("?", memory=None)]
    assert [best(made, budget)[1].row for budget in (None, 4.0, 3.0, 1.0)] == [made[2], made[0], made[1], None]
    assert best(made, 1.0)[1].title == "Fastest within 1 GiB"
    assert best(made, 1.0)[1].why == "no finished run fits"
    assert [choice.why for choice in best([], None)] == [
        "no finished run has a validation loss", "no finished run has a measured speed",
    ]  # fmt: skip


def test_between_tokenizers_the_lowest_bits_per_byte_win() -> None:
    small = row("small", loss=3.0, bits_per_byte=1.9, settings={"model.V": 512})
    large = row("large", loss=4.0, bits_per_byte=1.5, settings={"model.V": 4096})
    found = analyze_runs([small, large], None)
    assert found.ranking == [large, small]
    assert found.best[0].why == "bits per byte 1.5000"
    assert found.caveats == []


def test_the_hash_decides_whether_tokenizers_differ_and_older_results_go_by_their_settings() -> None:
    def measure(*told: tuple[str | None, int]) -> str:
        made = [row(str(n), tokenizer=t, settings={"model.V": V}) for n, (t, V) in enumerate(told)]
        return analyze_runs(made, None).measure

    assert measure(("a", 512), ("a", 512)) == measure((None, 512), (None, 512)) == "val loss"
    assert measure(("a", 512), ("b", 512)) == measure((None, 512), (None, 300)) == "bits per byte"
    assert measure(("a", 512), (None, 512)) == "bits per byte", "which compare in any case"


def test_the_curves_of_different_tokenizers_are_drawn_in_bits_per_byte(tmp_path: Path) -> None:
    """The second run has twice the nats in tokens of twice the bytes: the same curve."""
    for name, losses, bits in (("a", (4.0, 3.0), 0.5), ("b", (8.0, 6.0), 0.25)):
        write_metrics(tmp_path / name / "pretrain", losses, bits=bits)

    def drawn(*tokenizers: str) -> tuple[str, list[str]]:
        for name, tokenizer in zip("ab", tokenizers, strict=True):
            write_result(tmp_path / name, 3.0, tokenizer=tokenizer)
        found = analyze_runs([read_row(tmp_path / name) for name in "ab"], None)
        img, _ = draw_losses(found, "pretrain", choose_line_styles(found))
        svg = base64.b64decode(img.partition("base64,")[2].removesuffix('">')).decode()
        return svg, re.findall(r'<path d="(M [^"]+)" clip-path[^>]* stroke-width: 1.6', svg)

    svg, (first, second) = drawn("one", "other")
    assert "loss (bits per byte)" in svg and first == second
    svg, (first, second) = drawn("one", "one")
    assert "loss (nats per target)" in svg and first != second


def test_losses_of_different_text_are_compared_with_a_warning() -> None:
    made = [row(kind, settings={"phase": "pretrain", "data.kind": kind}) for kind in ("text", "pydocs")]
    assert analyze_runs(made, None).caveats == [
        "Compare the losses with care: they come from different text. The runs differ in data.kind."
    ]
    made = [row(str(T), settings={"model.T": T, "sft.model.T": T}) for T in (64, 128)]
    (said,) = analyze_runs(made, None).caveats
    assert said.endswith("runs differ in model.T.")


def test_the_settings_that_differ_are_told_once() -> None:
    same = {"train.seed": 1, "sft.train.seed": 1, "data.cache_dir": "a"}
    made = [
        row("a", settings=same | {"train.B": 2, "sft.train.B": 2, "sft.train.base_lr": 1.0}),
        row(
            "b", settings=same | {"train.B": 4, "sft.train.B": 4, "sft.train.base_lr": 2.0, "data.cache_dir": "b"}
        ),
        row("failed", status="failed"),
    ]
    assert analyze_runs(made, None).differing == {"train.B": [2, 4, None], "sft.train.base_lr": [1.0, 2.0, None]}


def test_the_numbers_are_those_of_the_jobs_unless_two_are_the_same() -> None:
    def numbers(*given: int) -> list[int]:
        return list(
            analyze_runs([row(str(n), number=number) for n, number in enumerate(given)], None).numbers.values()
        )

    assert numbers(2, 5) == [2, 5]
    assert numbers(2, 2) == numbers(0, 1) == [1, 2], "jobs of two sweeps, single runs and older sweeps"


def make_finished_row(name: str, last: float, speed: float = 1.0, **rest: Any) -> Row:
    return row(name, loss=min(last, 3.0), last_loss=last, unigram_loss=5.0, speed=speed, **rest)


def test_a_run_that_diverged_is_never_the_fastest() -> None:
    good, bad = make_finished_row("good", 3.0), make_finished_row("bad", 5.0, speed=9.0)
    failed = row("nan", status="failed", exit_code=NonFiniteError.exit_code)
    found = analyze_runs([bad, good, failed], None)
    assert found.diverged == [failed, bad] and found.best[1].row == good and found.front == [good]
    assert analyze_runs([bad, make_finished_row("short", 5.5)], None).diverged == [], "none is far enough to tell"


def test_the_axis_of_losses_leaves_out_what_a_run_that_diverged_reaches(tmp_path: Path) -> None:
    def highest(*names: str) -> float:
        found = analyze_runs([read_row(tmp_path / name) for name in names], None)
        img, _ = draw_losses(found, "pretrain", choose_line_styles(found))
        svg = base64.b64decode(img.partition("base64,")[2].removesuffix('">')).decode()
        return max(float(text) for text in re.findall(r">(\d+\.\d+)<", svg))

    made_run(tmp_path / "good", (4.0, 3.5, 3.0))
    for name, status in (("bad", "finished"), ("failed", "failed")):
        job = {"status": status, "exit_code": NonFiniteError.exit_code if status == "failed" else 0}
        made_run(tmp_path / name, (4.0, 900.0, 90.0), job=job)
    assert highest("good", "bad", "failed") == highest("good")


def test_ties_of_the_lowest_loss_are_named_with_the_tokens_trained(tmp_path: Path) -> None:
    for name, loss in (("a", 3.00001), ("b", 3.0), ("c", 3.1)):
        made_run(tmp_path / name, (4.0, loss))
    (lowest, _) = rewrite_report(tmp_path, None).best
    assert lowest.row and (lowest.row.name, lowest.row.tokens) == ("b", 4000)
    assert [tied.name for tied in lowest.ties] == ["a"]
    assert "b, val loss 3.0000 after 4,000 tokens, as has a\n" in (tmp_path / "sweep.md").read_text()
    page = (tmp_path / "sweep.html").read_text()
    assert re.search(r"The same loss: .*>a<", page) and "4,000\u00a0tokens" in page


def trained(folder: Path, *variants: tuple[float, dict[str, Any]]) -> list[Row]:
    """A run for each loss and its settings."""
    return [
        read_row(made_run(folder / str(n), (4.0, loss), **changed)) for n, (loss, changed) in enumerate(variants)
    ]


def test_equal_training_split_differently_coincides(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        (3.0, {"B": 8, "accum_steps": 1}),
        (3.0001, {"B": 4, "accum_steps": 2}),
        (2.0, {"B": 4, "accum_steps": 4}),
        (3.0, {"B": None, "accum_steps": None, "effective_batch": 8, "activation_checkpointing": True}),
    )
    (found,) = equal_training(made)
    assert found.jobs == [made[n].name for n in (0, 1, 3)]
    assert found.coincide and found.largest_difference == pytest.approx(1e-4)
    assert found.sentence.startswith("Runs 1, 2 and 4 (dropout 0) are the same training")
    assert "losses coincide, largest difference 0.0001 nats over 2 evaluations" in found.sentence


def test_runs_of_different_tokenizers_are_no_equal_training(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / str(n), B=B, accum_steps=8 // B) for n, B in enumerate((2, 4))]
    for tokenizers, groups in (("aa", 1), ("ab", 0)):
        for folder, tokenizer, B in zip(folders, tokenizers, (2, 4), strict=True):
            write_result(folder, 3.0, tokenizer=tokenizer, B=B, accum_steps=8 // B)
        assert len(equal_training([read_row(folder) for folder in folders])) == groups


def test_training_that_diverged_is_not_expected_to_coincide(tmp_path: Path) -> None:
    split = {"B": 8, "accum_steps": 1}
    made = trained(
        tmp_path, (3.0, {"base_lr": 1e-3}), (900.0, {"base_lr": 1.0}), (500.0, split | {"base_lr": 1.0})
    )
    assert equal_training(made) == []


def test_equal_training_that_does_not_coincide_is_told_plainly(tmp_path: Path) -> None:
    (found,) = equal_training(trained(tmp_path, (3.0, {}), (3.03, {"B": 8, "accum_steps": 1})))
    assert not found.coincide
    assert "do not coincide" in found.sentence and "this is a bug" in found.sentence


@pytest.mark.parametrize("changed", [{"base_lr": 2e-3}, {"seed": 2}, {"B": 8}, {"amp": True}])
def test_other_training_is_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert equal_training(trained(tmp_path, (3.0, {}), (2.0, changed))) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.write_text(run.read_text().replace('"dropout": 0.0', '"dropout": 0.1')),
        lambda run: run.unlink(),
        lambda run: write_metrics(run.parent / "pretrain", ()),
    ],
)
def test_what_cannot_be_compared_is_not(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    folders = [made_run(tmp_path / str(n), B=B, accum_steps=8 // B) for n, B in enumerate((2, 4))]
    spoil(folders[1] / "result.json")
    assert equal_training([read_row(folder) for folder in folders]) == []


def test_pipelines_are_equal_training_if_both_phases_are(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / str(n)) for n in range(2)]
    for folder, B in zip(folders, (2, 4), strict=True):
        write_result(folder, 3.0, ("pretrain", "sft"), B=B, accum_steps=8 // B)
    (found,) = equal_training([read_row(folder) for folder in folders])
    assert found.coincide
