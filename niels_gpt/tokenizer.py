"""Tokenizers: byte-level BPE and plain bytes, with the same special tokens."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from niels_gpt.bpe_file import build_bpe, convert_library_errors, map_symbols
from niels_gpt.errors import DataError
from niels_gpt.interruptible import run_interruptibly
from niels_gpt.storage import write_text
from niels_gpt.untrusted import UnreadableFile, read_json

END_OF_TEXT = "<|end_of_text|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end_of_turn|>"
SPECIAL_TOKENS: tuple[str, ...] = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN)
MAX_FILE = 64 << 20  # bytes; a tokenizer of a million entries stays below this
# The words of GPT-2's tokenizer, in ASCII. To Python, unlike to the library, 1C .. 1F are white space too.
ASCII_WORD = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^ \t-\rA-Za-z0-9]+|[ \t-\r]+(?![^ \t-\r])|[ \t-\r]+"
)
WORDS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")  # in any text; these always end between two of its words
KNOWN_SIZE = 1 << 26  # bytes of words whose ids are kept
WORD_COST = 256  # bytes for a word besides its characters
# A piece ends before a space, where the tokenizer splits anyway, so that pieces teach the same as the whole text.
# A word that goes on, such as DNA, is cut, because each merge goes through the whole word.
PIECE = re.compile(r"(?s)\S{1024}|.{1,8192}(?:(?<=\S)(?=[ \n])|\Z)|.{1,1024}")
PROBE = "It's cafe\u0301 12\n\t漢"  # a normalizer, or a pre-tokenizer that adds or removes spaces, would change it
_FIRST_SPECIAL_BYTE = 0xF8  # 0xF8 .. 0xFF never occur in UTF-8
BYTES_FILE = {"type": "bytes"}  # the content of its tokenizer.json


class Tokenizer(ABC):
    """Text to token ids and back, without loss. V entries; `special` has the id of each special token."""

    V: int
    special: dict[str, int]

    def __init__(self, entries: list[bytes], special: dict[str, int]) -> None:
        self.V, self.special = len(entries), special
        self._entries = entries  # the bytes of each id; b"" for the special tokens

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special one. DataError if it has a lone surrogate."""

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the ids of each text, as `encode` does."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def _definition(self) -> Any: ...

    @abstractmethod
    def library_text(self) -> str:
        """Return a tokenizer.json for Hugging Face's tokenizers, which read a spelt-out special token as one."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens; part of a character becomes U+FFFD.

        DataError if an id is not in 0 .. V-1.
        """
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.V:
            message = f"ids {min(ids)} .. {max(ids)} were given, but this tokenizer has 0 .. {self.V - 1}"
            raise DataError(message, "use the tokenizer that made them")
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the text of ids in 0 .. V-1 as UTF-8; of part of a character, its bytes."""
        return b"".join(self._entries[i] for i in ids)

    def token_bytes(self) -> list[int]:
        """Return the number of bytes of text per id: V numbers, 0 for special tokens."""
        return [len(entry) for entry in self._entries]

    def hash(self) -> str:
        """Return the sha256 (hex) of the vocabulary and merges: equal if two tokenizers encode alike."""
        return hashlib.sha256(json.dumps(self._definition()).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write tokenizer.json: whole or not at all."""
        write_text(path, self.library_text())


class BytesTokenizer(Tokenizer):
    """256 entries: byte b has id b. The special tokens take 0xF8 .. 0xFC, which never occur in UTF-8."""

    def __init__(self) -> None:
        special = {token: _FIRST_SPECIAL_BYTE + i for i, token in enumerate(SPECIAL_TOKENS)}
        entries = [b"" if b in special.values() else bytes([b]) for b in range(256)]
        super().__init__(entries, special)

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of `text`. DataError if it has a lone surrogate."""
        return list(_encode_utf8(text))

    def _definition(self) -> Any:
        return BYTES_FILE

    def symbols(self) -> dict[str, int]:
        """Return the entries of a byte-level BPE without merges that keeps the id of each byte."""
        return {symbol: b for symbol, b in map_symbols().items() if b not in self.special.values()} | self.special

    def library_text(self) -> str:
        """Return this byte-level BPE."""
        return str(_make_byte_level(self.symbols()).to_str())

    def save(self, path: Path) -> None:
        """Write its definition alone, from which it can be made again."""
        write_text(path, json.dumps(self._definition()))


class BpeTokenizer(Tokenizer):
    """Byte-level BPE as in GPT-2, by Hugging Face tokenizers; that of `train_bpe` has special ids 0 .. 4."""

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        """Take the library's. ValueError or DataError if it lacks a special token, or changes or loses text."""
        self._bpe, byte_of = bpe, map_symbols()
        vocab, added = bpe.get_vocab(), bpe.get_added_tokens_decoder()
        special = {token.content: id for id, token in added.items() if token.special}
        if missing := set(SPECIAL_TOKENS) - special.keys():
            raise ValueError(f"it has no special token {min(missing)}")
        if missing := byte_of.keys() - vocab.keys():
            raise ValueError(f"it has no token for the byte {byte_of[min(missing)]}")
        tokens = sorted(vocab, key=vocab.__getitem__)
        entries = [bytes(byte_of.get(symbol, ord("?")) for symbol in token) for token in tokens]
        for id, token in added.items():
            entries[id] = b"" if token.special else token.content.encode()
        super().__init__(entries, {token: special[token] for token in SPECIAL_TOKENS})
        self._typecode = "H" if self.V <= 1 << 16 else "I"
        self._known, self._room = dict[str, bytes](), KNOWN_SIZE  # the ids of words
        # Otherwise "<|user|>" in a text would become the special token. The library does not save this setting.
        bpe.encode_special_tokens = True
        for text in (PROBE, *special):
            self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special one. DataError if it has a lone surrogate, or would change."""
        content = _encode_utf8(text)
        try:
            with convert_library_errors():
                ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
            if b"".join(map(self._entries.__getitem__, ids)) != content:  # b"" if it reads a special token
                raise ValueError("decoding would not give it back")
        except ValueError as error:
            raise DataError(f"the tokenizer cannot encode {text[:40]!r}... ({error})", "use another one") from None
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the ids of each text, as `encode` does; words that were met before are looked up."""
        for text in texts:
            _encode_utf8(text)
        if not self._splits_as_gpt2:
            return [*self._encode_on_all_cores(texts)]
        words = [(ASCII_WORD if text.isascii() else WORDS).findall(text) for text in texts]
        new = {*chain.from_iterable(words)}.difference(self._known)
        self._room -= sum(map(len, new)) + WORD_COST * len(new)
        if self._room < 0:
            self._known, self._room = {}, KNOWN_SIZE
            new = {*chain.from_iterable(words)}
        self._known.update(zip(new, map(array.tobytes, self._encode_on_all_cores([*new])), strict=True))
        return [array(self._typecode, b"".join(map(self._known.__getitem__, found))) for found in words]

    @cached_property
    def _splits_as_gpt2(self) -> bool:
        """Whether the text is cut into words as by GPT-2's tokenizer, and no added token is cut out before."""
        return {*self._definition()} == {"type", "vocab", "merges"}

    def _encode_on_all_cores(self, texts: Sequence[str]) -> "list[array[int]]":
        with suppress(ValueError), convert_library_errors():
            encoded = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
            ids = [array(self._typecode, each.ids) for each in encoded]
            decoded = (b"".join(map(self._entries.__getitem__, each)) for each in ids)
            if all(content == text.encode() for content, text in zip(decoded, texts, strict=True)):
                return ids
        return [array(self._typecode, self.encode(text)) for text in texts]  # which names the text

    def _definition(self) -> Any:
        # The library's whole text may change its form with a version.
        files = (json.loads(bpe.to_str()) for bpe in (self._bpe, _make_byte_level({})))
        ours, usual = (file | file["model"] for file in files)
        definition = {"type": "bpe", "vocab": sorted(ours["vocab"].items()), "merges": ours["merges"]}
        rest = {key: ours[key] for key in ("pre_tokenizer", "normalizer", "added_tokens", "ignore_merges")}
        return definition if all(usual[key] == rest[key] for key in rest) else definition | rest

    def library_text(self) -> str:
        """Return the library's own text."""
        return str(self._bpe.to_str())


def train_bpe(texts: Iterable[str], V: int) -> Tokenizer:
    """Train V entries on `texts`; the same texts in the same order give the same tokenizer.

    DataError if V leaves no room for the 256 bytes, or if the text gives fewer entries (Sennrich et al., 2016).
    """
    bpe = _make_byte_level({})
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in PIECE.findall(_encode_utf8(text).decode()))
    run_interruptibly(lambda: bpe.train_from_iterator(pieces, trainer))
    if (n := bpe.get_vocab_size()) != V:
        hint = f"use model.V={n} or {'less, add text' if n < V else 'more'}, or data.tokenizer=bytes model.V=256"
        raise DataError(f"model.V={V}, but a BPE of this text has {n} entries", hint)
    return BpeTokenizer(bpe)


def load_tokenizer(path: Path, hint: str = "use the tokenizer.json of a niels_gpt run") -> Tokenizer:
    """Load a file that `save` wrote; nothing in it is executed. DataError with `hint`, naming any other file."""
    try:
        settings = read_json(path, MAX_FILE)
        return BytesTokenizer() if settings == BYTES_FILE else BpeTokenizer(build_bpe(settings))
    except (ValueError, DataError) as error:
        reason = error if isinstance(error, UnreadableFile) else f"{path}: not a tokenizer of niels_gpt ({error})"
        raise DataError(str(reason), hint) from None


def _make_byte_level(vocab: dict[str, int]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE without merges, of these entries and the special tokens."""
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return bpe


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"a lone surrogate at character {error.start} of the text", "remove it") from error
