"""What has to be true of a run folder or a token cache at any moment, whatever was killed."""

import hashlib
from pathlib import Path

import torch
from conftest import final, metrics, same

from niels_gpt.config import DataCfg
from niels_gpt.data.cache.hash_index import INDEX_FILE
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.data.sources import Want
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


def require_equal(run: Path, straight: Path) -> None:
    """A run ended as one that was never disturbed: weights, optimizer and metrics to the bit."""
    phases = sorted(path.parent.name for path in straight.glob("*/latest.pt"))
    assert sorted(path.parent.name for path in run.glob("*/latest.pt")) == phases
    for phase in phases:
        assert same(final(run / phase), final(straight / phase)), phase
        assert metrics(run / phase) == metrics(straight / phase), phase
    assert not leftovers(run)


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
    """Return the sha256 of every file that a token cache shows, but of the index."""
    names = [path.relative_to(cache) for path in cache.rglob("[!.]*") if path.is_file() and path.suffix != ".lock"]
    shown = [name for name in map(str, names) if not name.startswith(".") and name != INDEX_FILE]
    return {name: hashlib.sha256((cache / name).read_bytes()).hexdigest() for name in shown}
