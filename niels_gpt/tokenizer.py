"""Tokenizers: byte-level BPE and plain bytes, with the same special tokens."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from niels_gpt.errors import DataError
from niels_gpt.interruptible import run_interruptibly
from niels_gpt.storage import write_text
from niels_gpt.untrusted import UnreadableFile, read_text

END_OF_TEXT = "<|end_of_text|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end_of_turn|>"
SPECIAL_TOKENS: tuple[str, ...] = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN)
MAX_FILE = 64 << 20  # bytes; a tokenizer of a million entries stays below this
_FIRST_SPECIAL_BYTE = 0xF8  # 0xF8 .. 0xFF never occur in UTF-8
_HINT = "use the tokenizer.json of a niels_gpt run"


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
        return b"".join(self._entries[i] for i in ids).decode("utf-8", "replace")

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
        return {"type": "bytes"}

    def library_text(self) -> str:
        """Return a byte-level BPE without merges that keeps the id of each byte."""
        own = {symbol: b for symbol, b in _map_symbols().items() if b not in self.special.values()}
        return str(_make_byte_level(own | self.special).to_str())

    def save(self, path: Path) -> None:
        """Write its definition alone, from which it can be made again."""
        write_text(path, json.dumps(self._definition()))


class BpeTokenizer(Tokenizer):
    """Byte-level BPE as in GPT-2, by Hugging Face tokenizers; the special tokens have ids 0 .. 4."""

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        vocab = bpe.get_vocab()
        special = {token: vocab[token] for token in SPECIAL_TOKENS}
        byte_of = _map_symbols()
        tokens = sorted(vocab, key=lambda token: vocab[token])
        entries = [b"" if token in special else bytes(byte_of[s] for s in token) for token in tokens]
        super().__init__(entries, special)
        self._bpe = bpe
        # Otherwise "<|user|>" in a text would become the special token. The library does not save this setting.
        self._bpe.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special one. DataError if it has a lone surrogate."""
        _encode_utf8(text)
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def _definition(self) -> Any:
        # The library's whole text may change its form with a version.
        model = json.loads(self._bpe.to_str())["model"]
        return {"type": "bpe", "vocab": sorted(model["vocab"].items()), "merges": model["merges"]}

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
    abandoned = False

    def check_texts() -> Iterator[str]:
        for text in texts:
            if abandoned:  # by a signal
                raise InterruptedError
            yield _encode_utf8(text).decode()

    try:
        run_interruptibly(lambda: bpe.train_from_iterator(check_texts(), trainer))
    finally:
        abandoned = True
    if (n := bpe.get_vocab_size()) != V:
        hint = "less, or add more text" if n < V else "more, or data.tokenizer=bytes with model.V=256"
        raise DataError(f"model.V={V}, but a BPE of this text has {n} entries", f"use model.V={n} or {hint}")
    return BpeTokenizer(bpe)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a file that `save` wrote; nothing in it is executed. DataError naming any other file."""
    try:
        text = read_text(path, MAX_FILE)
    except UnreadableFile as error:
        raise DataError(str(error), _HINT) from None
    try:
        if json.loads(text) == {"type": "bytes"}:
            return BytesTokenizer()
        bpe = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: not a tokenizer ({error})", _HINT) from error
    vocab, symbols, special = bpe.get_vocab(), set(_map_symbols()), set(SPECIAL_TOKENS)
    is_complete = sorted(vocab.values()) == list(range(len(vocab))) and symbols | special <= vocab.keys()
    is_bytes = symbols.issuperset("".join(vocab.keys() - special))
    if not is_complete or not is_bytes or _read_settings(bpe) != _read_settings(_make_byte_level({})):
        raise DataError(f"{path}: not a tokenizer of niels_gpt (its entries or settings differ)", _HINT)
    return BpeTokenizer(bpe)


def _read_settings(bpe: tokenizers.Tokenizer) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(bpe.to_str())
    settings["model"] |= {"vocab": {}, "merges": []}
    return settings


def _make_byte_level(vocab: dict[str, int]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE without merges, of these entries and the special tokens."""
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return bpe


def _map_symbols() -> dict[str, int]:
    """Return the byte that each symbol of byte-level BPE stands for.

    As in GPT-2: a printable byte is its Latin-1 character, the others follow in order from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"a lone surrogate at character {error.start} of the text", "remove it") from error
