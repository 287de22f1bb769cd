"""What a report finds in its rows is right: the best, the Pareto front, what differs, equal training."""

import base64
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.made_runs import MODEL, made_run, row, write_metrics, write_result

from niels_gpt.errors import NonFiniteError
from train.report.figures import choose_line_styles, draw_losses
from train.report.findings import EquivalentRuns, analyze_runs
from train.report.rows import Row, read_row
from train.report.write import rewrite_report

LOSS, SPEED = st.none() | st.floats(0, 10), st.none() | st.sampled_from([1.0, 2.0, 3.0])
MEMORY = st.none() | st.integers(1, 4)  # few values of both, so that they tie often
STATUS = st.sampled_from(["finished", "finished", "failed", "running"])
ROWS = st.lists(st.builds(row, st.just("run"), LOSS, SPEED, MEMORY, status=STATUS), max_size=12)


def equal_training(made: list[Row]) -> list[EquivalentRuns]:
    return analyze_runs(made, None).equal_training


@given(ROWS)
def test_the_front_is_every_run_that_no_other_one_beats(made: list[Row]) -> None:
    found = analyze_runs(made, None)
    able = [r for r in made if r.status == "finished" and r.tokens_per_second and r.peak_memory_gib]
    at = {r: (r.tokens_per_second or 0.0, -(r.peak_memory_gib or 0)) for r in able}
    beaten = {r for r, (a, b) in at.items() if any(c >= a and d >= b and (c, d) != (a, b) for c, d in at.values())}
    assert found.measured == able and set(found.front) == set(able) - beaten
    memory = [r.peak_memory_gib for r in found.front]
    assert len(memory) == len(able) - len(beaten) and memory == sorted(r.peak_memory_gib or 0 for r in found.front)


@given(ROWS, st.none() | st.sampled_from([1.5, 3]))
def test_the_best_are_finished_fit_the_budget_and_none_is_better(made: list[Row], budget: float | None) -> None:
    lowest, fastest = analyze_runs(made, budget).best
    done = [r for r in made if r.status == "finished"]
    losses = {r: r.val_loss for r in done if r.val_loss is not None}
    assert losses[lowest.row] == min(losses.values()) if lowest.row else not losses
    fitting = [r for r in done if budget is None or (r.peak_memory_gib or 9) <= budget]
    speeds = {r: r.tokens_per_second for r in fitting if r.tokens_per_second}
    assert speeds[fastest.row] == max(speeds.values()) if fastest.row else not speeds


def test_between_tokenizers_the_lowest_bits_per_byte_win() -> None:
    small = row("small", loss=3.0, bits_per_byte=1.9, settings={"model.V": 512})
    large = row("large", loss=4.0, bits_per_byte=1.5, settings={"model.V": 4096})
    found = analyze_runs([small, large], None)
    assert found.ranking == [large, small]
    assert (found.best[0].why, found.caveats) == ("bits per byte 1.5000", [])


def test_the_hash_decides_whether_tokenizers_differ_and_older_results_go_by_their_settings() -> None:
    def measure(*told: tuple[str | None, int]) -> str:
        made = [row(str(n), tokenizer=t, settings={"model.V": V}) for n, (t, V) in enumerate(told)]
        return analyze_runs(made, None).measure

    assert measure(("a", 512), ("a", 512)) == measure((None, 512), (None, 512)) == "val loss"
    assert measure(("a", 512), ("b", 512)) == measure((None, 512), (None, 300)) == "bits per byte"


def draw_svg(*folders: Path) -> str:
    found = analyze_runs([read_row(folder) for folder in folders], None)
    img, _ = draw_losses(found, "pretrain", choose_line_styles(found))
    return base64.b64decode(img.partition("base64,")[2].removesuffix('">')).decode()


def test_the_curves_of_different_tokenizers_are_drawn_in_bits_per_byte(tmp_path: Path) -> None:
    """The second run has twice the nats in tokens of twice the bytes: the same curve."""
    for name, losses, bits in (("a", (4.0, 3.0), 0.5), ("b", (8.0, 6.0), 0.25)):
        write_metrics(tmp_path / name / "pretrain", losses, bits=bits)

    def drawn(*tokenizers: str) -> tuple[str, list[str]]:
        for name, tokenizer in zip("ab", tokenizers, strict=True):
            write_result(tmp_path / name, 3.0, tokenizer=tokenizer)
        svg = draw_svg(tmp_path / "a", tmp_path / "b")
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
    made = [row("failed", status="failed")]
    for B, rate, folder in ((2, 1.0, "a"), (4, 2.0, "b")):
        own = {"train.B": B, "sft.train.B": B, "sft.train.base_lr": rate, "data.cache_dir": folder}
        made.insert(-1, row(folder, settings={"train.seed": 1, "sft.train.seed": 1} | own))
    assert analyze_runs(made, None).differing == {"train.B": [2, 4, None], "sft.train.base_lr": [1.0, 2.0, None]}


def test_the_numbers_are_those_of_the_jobs_unless_two_are_the_same() -> None:
    def numbers(*given: int) -> list[int]:
        return list(analyze_runs([row("job", number=number) for number in given], None).numbers.values())

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
        svg = draw_svg(*(tmp_path / name for name in names))
        return max(float(text) for text in re.findall(r">(\d+\.\d+)<", svg))

    made_run(tmp_path / "good", (4.0, 3.5, 3.0))
    made_run(tmp_path / "bad", (4.0, 900.0, 90.0))
    made_run(
        tmp_path / "failed", (4.0, 900.0, 90.0), job={"status": "failed", "exit_code": NonFiniteError.exit_code}
    )
    assert highest("good", "bad", "failed") == highest("good")


def test_ties_of_the_lowest_loss_are_named_with_the_tokens_trained(tmp_path: Path) -> None:
    for name, loss in (("a", 3.00001), ("b", 3.0), ("c", 3.1)):
        made_run(tmp_path / name, (4.0, loss))
    (lowest, _) = rewrite_report(tmp_path, None).best
    assert lowest.row and (lowest.row.name, lowest.row.tokens) == ("b", 4000)
    assert [tied.name for tied in lowest.ties] == ["a"]
    assert "b, val loss 3.0000 after 4,000 tokens, as has a\n" in (tmp_path / "sweep.md").read_text()
    assert re.search(r"The same loss: .*>a<", (tmp_path / "sweep.html").read_text())


def trained(folder: Path, *variants: tuple[float, dict[str, Any]]) -> list[Row]:
    """A run for each last loss and its settings."""
    made = enumerate(variants)
    return [read_row(made_run(folder / str(n), (4.0, loss), **changed)) for n, (loss, changed) in made]


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


def test_equal_training_that_does_not_coincide_is_told_plainly_unless_it_diverged(tmp_path: Path) -> None:
    split, high = {"B": 8, "accum_steps": 1}, {"base_lr": 1.0}
    made = trained(tmp_path, (3.0, {}), (3.03, split), (900.0, high), (500.0, high | split))
    (found,) = equal_training(made)
    assert not found.coincide and found.jobs == ["0", "1"]
    assert "do not coincide" in found.sentence and "this is a bug" in found.sentence


@pytest.mark.parametrize("changed", [{"base_lr": 2e-3}, {"B": 8}, {"amp": True}, {"tokenizer": "b"}])
def test_other_training_is_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert equal_training(trained(tmp_path, (3.0, {}), (2.0, changed))) == []


def test_runs_with_dropout_or_without_evaluations_are_not_compared(tmp_path: Path) -> None:
    split: tuple[tuple[float, dict[str, Any]], ...] = ((3.0, {}), (3.0, {"B": 8, "accum_steps": 1}))
    with mock.patch.dict(MODEL, dropout=0.1):
        assert equal_training(trained(tmp_path, *split)) == []
    assert equal_training(trained(tmp_path, *split))
    write_metrics(tmp_path / "1" / "pretrain", ())
    assert equal_training([read_row(tmp_path / name) for name in "01"]) == []


def test_pipelines_are_equal_training_if_both_phases_are(tmp_path: Path) -> None:
    for B in (2, 4):
        write_result(made_run(tmp_path / str(B)), 3.0, ("pretrain", "sft"), B=B, accum_steps=8 // B)
    (found,) = equal_training([read_row(tmp_path / name) for name in "24"])
    assert found.coincide
