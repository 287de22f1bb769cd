"""Settings of the library: the shape of a model and the sources of its text."""

import os
from collections.abc import Iterator
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from niels_gpt.printable import escape_line

SourceKind = Literal["pydocs", "text", "jsonl", "synthetic", "hf"]
MIN_SHARE = 0.002  # of a mixture: two sequences of the 1024 over which weights are honoured
MAX_ROPE_TABLE = 1 << 24  # numbers in the table of rotary cosines, as in that of sines: 64 MiB each
Item = TypeVar("Item")
# A list that may be written as a single item. Not strict: what a validator returns counts as Python's, and a list
# from JSON would be refused.
Several = Annotated[
    tuple[Item, ...],
    Field(strict=False),
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
]
Texts = Several[str]
Size = Annotated[int, Field(ge=1, le=1 << 24)]


class Cfg(BaseModel):
    """Base of all settings: frozen; unknown keys are errors; values are not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def rules(self) -> Iterator[str]:
        """Yield a sentence for every rule between fields that these settings break."""
        yield from ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        if broken := [*self.rules()]:
            raise ValueError("\n".join(map(escape_line, broken)))
        return self


class ModelCfg(Cfg):
    """Shape of a GPT. The letters are used for tensor shapes throughout."""

    V: int = Field(ge=256, le=1 << 20, description="vocabulary size")
    T: Size = Field(description="context: tokens in a sequence")
    C: Size = Field(description="channels: width of the residual stream")
    L: int = Field(ge=1, le=1024, description="layers: number of blocks")
    H: int = Field(ge=1, le=1024, description="attention heads; H must divide C, and C/H must be even")
    H_kv: int | None = Field(
        None, ge=1, le=1024, description="heads of keys and values, each shared by H/H_kv queries' heads; null: H"
    )
    d_ff: Size = Field(description="width of the feed-forward layer")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout rate on embeddings and residual branches")
    rope_theta: float = Field(10000.0, gt=1.0, le=1e9, description="base of the rotary position embedding")
    norm_eps: float = Field(1e-5, gt=0.0, le=1.0, description="added to the mean square in each RMSNorm")
    tie_embeddings: bool = Field(
        False, description="share the embedding's weights with the head; false adds V x C weights"
    )

    def rules(self) -> Iterator[str]:
        """C divides evenly into heads of an even size, and the rotary tables are not too large."""
        if self.C % self.H:
            yield f"C={self.C} is not divisible by H={self.H}; choose H among the divisors of C"
        elif (self.C // self.H) % 2:
            yield f"C={self.C} over H={self.H} heads gives an odd head size; rotary positions need an even one"
        elif self.T * (self.C // self.H) > MAX_ROPE_TABLE:
            yield f"T={self.T} times the head size {self.C // self.H} is more than {MAX_ROPE_TABLE}; lower T"
        if self.H % self.kv_heads:
            yield f"H={self.H} is not divisible by H_kv={self.H_kv}; choose H_kv among the divisors of H"

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.H_kv or self.H


class SourceCfg(Cfg):
    """One source of documents (for pretraining) or dialogues (for SFT)."""

    kind: SourceKind = Field("pydocs", description="where the text comes from; the group data sets it")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="the source's name, for val_source; default: its kind"
    )
    weight: float = Field(1.0, gt=0.0, le=1e6, description="share in a mixture, relative to the others")
    files: Texts = Field((), description="text, jsonl: paths, folders or globs; ** matches subfolders")
    documents: Literal["file", "blank_lines"] = Field(
        "file", description="text: each document is a file, or a paragraph between blank lines"
    )
    on_bad_line: Literal["error", "skip"] = Field("error", description="jsonl, hf: stop at a bad row, or skip it")
    packages: Texts = Field((), description="pydocs: also read docstrings of these installed packages")
    code: bool = Field(False, description="pydocs: also read the Python source code")
    size: int = Field(2000, ge=20, le=10_000_000, description="synthetic: number of documents")
    val_files: Texts = Field((), description="text, jsonl: validate on these files; all of files trains")
    learn: Literal["assistant", "all"] = Field(
        "assistant", description="dialogues: learn the assistant's words, or the user's too"
    )
    separator: str = Field(
        "", max_length=256, description="text: the mark between documents, such as <|endoftext|>, which is removed"
    )
    repo: str = Field(
        "", description="hf: owner/name of the Hugging Face hub, or a folder of parquet, arrow, jsonl, csv"
    )
    subset: str = Field("", description="hf: the part of a data set that the hub calls subset or config")
    split: str = Field("train", min_length=1, description="hf: the split to read")
    val_split: str = Field("", description="hf: a split to validate on; empty: hold out val_fraction of `split`")
    column: str = Field(
        "", description="hf: read the text of this column; empty: rows of messages, text and the like"
    )
    revision: str = Field("", description="hf: commit, branch or tag; empty: the newest when it is first read")
    streaming: bool = Field(False, description="hf: fetch only as many rows as max_tokens needs, not whole files")
    max_tokens: int = Field(0, ge=0, description="stop at so many training tokens; 0: read all")
    hub_dir: str = Field(
        "", description="hf: folder of what is fetched from the hub; empty: hub in data.cache_dir"
    )

    @property
    def label(self) -> str:
        """Its name, or its kind if it has none."""
        return self.name or self.kind

    def held_out(self) -> "SourceCfg | None":
        """Return the source of the validation split, or None if a part of this source validates."""
        other = {"split": self.val_split or self.split, "files": self.val_files or self.files}
        other |= {"val_split": "", "val_files": (), "name": f"{self.label}, to validate on"}
        return self.model_copy(update=other) if self.val_split or self.val_files else None

    def rules(self) -> Iterator[str]:
        """Text and jsonl need files, and only they have them; documents end at a separator or at blank lines."""
        if self.kind in ("text", "jsonl") and not self.files:
            yield f"kind={self.kind} needs files; set files=PATH or files=[PATH,...] to files, folders or globs"
        if self.kind not in ("text", "jsonl") and self.val_files:
            yield f"kind={self.kind} has no val_files; use {'val_split or ' * (self.kind == 'hf')}val_fraction"
        if self.separator and self.documents == "blank_lines":
            yield "separator and documents=blank_lines exclude each other; choose one"
        if self.kind == "hf" and not self.repo:
            yield "kind=hf needs repo; set repo=OWNER/NAME of the Hugging Face hub, or repo=PATH of files"
        if self.val_split and (self.kind != "hf" or self.val_split == self.split):
            yield "val_split names another split of a source of kind hf; otherwise use val_fraction"


class DataCfg(SourceCfg):
    """A source, or a mixture of `sources` instead, and the settings of its token files."""

    sources: tuple[SourceCfg, ...] = Field(
        (), description="a mixture, such as [{kind: pydocs}, {kind: text, files: a.md}]"
    )
    tokenizer: str = Field(
        "bpe", description="bpe: byte-level BPE of model.V entries; bytes; or the path of a tokenizer.json to take"
    )
    val_source: str = Field("", description="validate on this source only; empty: on the whole mixture")
    val_fraction: float = Field(0.05, gt=0.0, lt=0.5, description="fraction of documents held out for validation")
    cache_dir: str = Field("cache", min_length=1, description="folder for tokenized data, shared by all runs")
    tokenizer_sample: int = Field(
        100_000_000, ge=100_000, le=10**12, description="bpe: learn from at most this many bytes of text"
    )
    verify: bool = Field(False, description="read all text and token files again, to find damage; else once")
    isolate: bool | None = Field(
        None,
        description="attention stays within a dialogue or document; null: in SFT, not in pretraining",
    )

    def rules(self) -> Iterator[str]:
        """A mixture replaces the single source, whose own settings are then ignored."""
        if not self.sources:
            yield from super().rules()
        if self.tokenizer not in ("bpe", "bytes") and not self.tokenizer.endswith(".json"):
            use = f"; use {path}" if os.path.isfile(path := f"{self.tokenizer}/tokenizer.json") else ""
            yield f"tokenizer={self.tokenizer} must be bpe, bytes or the path of a tokenizer.json{use}"
        names = [source.label for source in self.mixture()]
        if self.val_source and names.count(self.val_source) != 1:
            yield f"val_source={self.val_source} must name one of the sources {names}"
        default = type(self).model_fields["val_fraction"].default
        if self.val_fraction != default and all(source.val_files for source in self.mixture()):
            yield "val_files are all of the validation split; leave val_fraction out"
        total = sum(source.weight for source in self.mixture())
        for source in self.mixture():
            if source.weight / total < MIN_SHARE:
                share = f"{source.weight / total:.5f}, less than {MIN_SHARE}"
                yield f"{source.label} has a share of {share}; raise its weight"

    def mixture(self) -> tuple[SourceCfg, ...]:
        """Return the sources to read, one at least."""
        own = {name: getattr(self, name) for name in SourceCfg.model_fields}
        hub = {"hub_dir": self.hub_dir or f"{self.cache_dir}/hub"}
        sources = self.sources or (SourceCfg.model_construct(**own),)
        return tuple(s if s.kind != "hf" or s.hub_dir else s.model_copy(update=hub) for s in sources)
