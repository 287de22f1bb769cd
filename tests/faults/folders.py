"""What has to be true of a run folder or a token cache at any moment, whatever was killed."""

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
from conftest import final, metrics, same

from niels_gpt.config import DataCfg
from niels_gpt.data.hash_index import INDEX_FILE
from niels_gpt.data.sources import Want
from niels_gpt.data.token_cache import open_cache
from niels_gpt.data.token_files import read_meta
from niels_gpt.errors import CheckpointError
from niels_gpt.tokenizer import BytesTokenizer, load_tokenizer
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.metrics import read_metrics
from train.artifacts.results import read_results

TINY = (
    *("model.V=256", "data.tokenizer=bytes", "data.size=100", "model.T=16", "model.C=16", "model.L=1"),
    *("model.d_ff=16", "train.B=2", "train.accum_steps=1", "train.eval_sequences=4"),
)


def leftovers(folder: Path) -> list[Path]:
    """Return the hidden files in which something was being written."""
    return list(folder.rglob(".*.part"))


def require_whole(run: Path) -> None:
    """Whatever is visible under its name is complete."""
    for path in run.rglob("[!.]*.pt"):
        read_checkpoint(path)
    if (run / "tokenizer.json").exists():
        load_tokenizer(run / "tokenizer.json")
    if (run / "result.json").exists():
        assert read_results(run)
    for path in run.rglob("curves.png"):
        assert path.read_bytes().rstrip().endswith(b"IEND\xaeB`\x82")
    for path in run.rglob("metrics.jsonl"):
        torn = len(path.read_bytes().splitlines()) - len(list(read_metrics(path)))
        assert torn in (0, 1), "only the last line can be torn"


def good_checkpoints(phase: Path) -> int:
    """Return how many undamaged checkpoints a phase has."""
    found = 0
    for path in phase.glob("*.pt"):
        try:
            read_checkpoint(path)
            found += 1
        except CheckpointError:
            pass
    return found


def require_equal(run: Path, straight: Path) -> None:
    """A run ended as one that was never disturbed: weights, optimizer and metrics to the bit, each step once."""
    phases = sorted(path.parent.name for path in straight.glob("*/latest.pt"))
    assert sorted(path.parent.name for path in run.glob("*/latest.pt")) == phases
    for phase in phases:
        assert same(final(run / phase), final(straight / phase)), phase
        events = metrics(run / phase)
        assert events == metrics(straight / phase), phase
        steps = [event["step"] for event in events if event["event"] == "train"]
        assert all(before < after for before, after in pairwise(steps))
    assert not leftovers(run)


def require_whole_cache(cache: Path) -> None:
    """Whatever is visible in a token cache is complete, to the hash."""
    for folder in cache.glob("[!.]*-*/"):
        for split, columns in read_meta(folder).splits.items():
            for name, column in columns:
                assert _sha256(folder / f"{split}.{name}") == column.sha256
    for path in cache.glob("tokenizer-*.json"):
        assert load_tokenizer(path).hash() == path.with_suffix(".sha256").read_text()


def synthetic(tmp_path: Path, **changes: object) -> DataCfg:
    """Return a little data whose token cache is tmp_path/cache."""
    settings = {"kind": "synthetic", "tokenizer": "bytes", "size": 60, "cache_dir": str(tmp_path / "cache")}
    return DataCfg.model_validate(settings | changes)


def opened(cfg: DataCfg) -> list[list[torch.Tensor]]:
    """Open all token files; copies, since they are mapped and about to change."""
    wants: tuple[Want, ...] = ("documents", "dialogues")
    return [
        [column.clone() for column in open_cache(cfg.mixture()[0], want, BytesTokenizer(), cfg, 99).open(split)]
        for want in wants
        for split in ("train", "val")
    ]


def hashes(cache: Path) -> dict[str, str]:
    """Return the sha256 of every file of a token cache but the locks and the index."""
    files = [
        path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != INDEX_FILE
    ]
    return {str(path.relative_to(cache)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
