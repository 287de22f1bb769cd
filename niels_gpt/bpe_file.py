"""Check a byte-level BPE in the format of Hugging Face's tokenizers (tokenizer.json); the file is untrusted."""

import json
from typing import Annotated, Any, Literal, Self

import tokenizers
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from niels_gpt.errors import first_line

MAX_ENTRIES = 1 << 20
DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


class _Part(BaseModel):
    """A part of the file. A setting of the library that is not listed here must be off."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="after")
    def _refuse_unknown(self) -> Self:
        if on := [key for key, value in (self.model_extra or {}).items() if value]:
            raise ValueError(f"{on[0]:.40} is not supported")
        (self.model_extra or {}).clear()
        return self


class AddedToken(_Part):
    """A token that is cut out of a text first, unless it is `special`."""

    id: int
    content: str = Field(min_length=1, max_length=256)
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class ByteLevel(_Part):
    """Write each byte as a symbol; `use_regex` splits as GPT-2 does."""

    type: Literal["ByteLevel"]
    add_prefix_space: Literal[False]  # the space would not be in the text
    trim_offsets: bool = True
    use_regex: bool = True


class Split(_Part):
    """Split at a pattern, and keep all of the text."""

    type: Literal["Split"]
    pattern: dict[Literal["Regex", "String"], str] = Field(min_length=1, max_length=1)
    behavior: Literal["Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    invert: bool = False


class Sequence(_Part):
    """Splits, then ByteLevel."""

    type: Literal["Sequence"]
    pretokenizers: list[Annotated[Split | ByteLevel, Field(discriminator="type")]]

    @model_validator(mode="after")
    def _require_byte_level_once(self) -> Self:
        types = [part.type for part in self.pretokenizers]
        if types[-1:] != ["ByteLevel"] or types.count("ByteLevel") > 1:
            raise ValueError("ByteLevel must come last, and only once")
        return self


class Bpe(_Part):
    """Entries with their ids, and merges in order."""

    type: Literal["BPE"] = "BPE"
    vocab: dict[str, int] = Field(max_length=MAX_ENTRIES)
    merges: list[list[str]] | Annotated[list[str], AfterValidator(lambda old: [pair.split(" ") for pair in old])]
    ignore_merges: bool = False
    continuing_subword_prefix: Literal["", None] = None
    end_of_word_suffix: Literal["", None] = None
    unk_token: str | None = None  # unused: every byte is known
    fuse_unk: bool = False


class BpeFile(BaseModel):
    """The parts of the file that decide how a text is encoded, without templates, padding and the like."""

    model_config = ConfigDict(strict=True)

    model: Bpe
    pre_tokenizer: Annotated[ByteLevel | Sequence, Field(discriminator="type")]
    normalizer: None = None  # it would change the text
    added_tokens: list[AddedToken] = Field(max_length=MAX_ENTRIES)

    @property
    def vocab(self) -> dict[str, int]:
        """The id of each entry, added ones included."""
        return self.model.vocab | {token.content: token.id for token in self.added_tokens}

    def build(self) -> tokenizers.Tokenizer:
        """Return the library's tokenizer. ValueError if it could lose text, or read a special token in it."""
        vocab, symbols = self.vocab, map_symbols()
        added = {token.content for token in self.added_tokens}
        if len(vocab) > MAX_ENTRIES or sorted(vocab.values()) != [*range(len(vocab))]:
            raise ValueError("its ids do not count from 0")
        if missing := symbols.keys() - (vocab.keys() - added):
            raise ValueError(f"it has no token for the byte {symbols[min(missing)]}")
        if odd := [token for token in vocab.keys() - added if not symbols.keys() >= set(token)]:
            raise ValueError(f"its token {min(odd)!r:.40} is not made of bytes")
        if spelt := added & {"".join(pair) for pair in self.model.merges}:
            raise ValueError(f"its merges make the added token {min(spelt)!r:.40}")
        if stripping := [t.content for t in self.added_tokens if not t.special and (t.lstrip or t.rstrip)]:
            raise ValueError(f"its token {stripping[0]!r:.40} takes in spaces")
        settings = self.model_dump(include={"added_tokens", "pre_tokenizer"}) | {"decoder": DECODER}
        settings["model"] = self.model.model_dump(include={"type", "vocab", "merges", "ignore_merges"})
        try:
            bpe = tokenizers.Tokenizer.from_str(json.dumps(settings))
            # With ignore_merges, a word that is an entry becomes that entry.
            words = added & self.model.vocab.keys() if self.model.ignore_merges else set()
            spelt = {token for token in words if len(bpe.pre_tokenizer.pre_tokenize_str(token)) == 1}
        except BaseException as error:  # the library raises bare Exception
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise ValueError(first_line(error)) from error
        if bpe.get_vocab() != vocab or spelt:
            reason = "the ids of its added tokens do not follow the others"
            raise ValueError(f"a text can spell its added token {min(spelt)!r:.40}" if spelt else reason)
        return bpe


def parse_bpe(settings: Any) -> BpeFile:
    """Return the content of a tokenizer.json, checked. ValueError says what it is instead."""
    try:
        return BpeFile.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
    where, given, context = ".".join(map(str, first["loc"])), first["input"], first.get("ctx", {})
    given = given.get("type", "another") if isinstance(given, dict) else given
    if allowed := context.get("expected_tags", context.get("expected")):
        raise ValueError(f"its {where} is {given!s:.60}, not {allowed}")
    if first["type"] == "none_required":
        raise ValueError(f"it has a {where}, {given!s:.60}")
    raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}")


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic in Rust, such as of a pattern that backtracks without end."""
    return type(error).__name__ == "PanicException"


def map_symbols() -> dict[str, int]:
    """Return the byte that each symbol of byte-level BPE stands for.

    As in GPT-2: a printable byte is its Latin-1 character, the others follow in order from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
