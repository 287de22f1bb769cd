"""Tokenizers: byte-level BPE and plain bytes, with the same special tokens."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from niels_gpt.bpe_file import BpeFile, is_panic, map_symbols, parse_bpe
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
MAX_WORD = 1024  # bytes between two splits of the text to learn from; a merge goes through the whole word
# The words of GPT-2's tokenizer, in ASCII. To Python, unlike to the library, 1C .. 1F are white space too.
ASCII_WORD = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^ \t-\rA-Za-z0-9]+|[ \t-\r]+(?![^ \t-\r])|[ \t-\r]+"
)
WORDS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")  # in any text; these always end between two of its words
KNOWN_SIZE = 1 << 26  # bytes of words whose ids are kept
WORD_COST = 256  # bytes for a word besides its characters
_FIRST_SPECIAL_BYTE = 0xF8  # 0xF8 .. 0xFF never occur in UTF-8
BYTES_FILE = {"type": "bytes"}  # the content of its tokenizer.json
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
        return BYTES_FILE

    def library_text(self) -> str:
        """Return a byte-level BPE without merges that keeps the id of each byte."""
        own = {symbol: b for symbol, b in map_symbols().items() if b not in self.special.values()}
        return str(_make_byte_level(own | self.special).to_str())

    def save(self, path: Path) -> None:
        """Write its definition alone, from which it can be made again."""
        write_text(path, json.dumps(self._definition()))


class BpeTokenizer(Tokenizer):
    """Byte-level BPE as in GPT-2, by Hugging Face tokenizers; that of `train_bpe` has special ids 0 .. 4."""

    def __init__(self, file: BpeFile) -> None:
        """Build the library's tokenizer. ValueError if it lacks a special token, or could lose text."""
        added, byte_of = {token.id: token for token in file.added_tokens}, map_symbols()
        special = {token.content: token.id for token in file.added_tokens if token.special}
        if missing := set(SPECIAL_TOKENS) - special.keys():
            raise ValueError(f"it has no special token {min(missing)}")
        self._file, self._bpe = file, file.build()
        # Otherwise "<|user|>" in a text would become the special token. The library does not save this setting.
        self._bpe.encode_special_tokens = True
        entries = [
            bytes(byte_of[s] for s in token) if id not in added else b"" if added[id].special else token.encode()
            for token, id in sorted(file.vocab.items(), key=lambda entry: entry[1])
        ]
        super().__init__(entries, {token: special[token] for token in SPECIAL_TOKENS})
        self._typecode = "H" if self.V <= 1 << 16 else "I"
        self._known, self._room = dict[str, bytes](), KNOWN_SIZE  # the ids of words

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special one. DataError if it has a lone surrogate."""
        _encode_utf8(text)
        try:
            ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not is_panic(error):
                raise
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
        try:
            ids = [each.ids for each in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            if not is_panic(error):
                raise
            ids = [self.encode(text) for text in texts]  # which names the text
        return [array(self._typecode, each) for each in ids]

    def _definition(self) -> Any:
        # The library's whole text may change its form with a version.
        model, rest = self._file.model, self._file.model_dump(exclude={"model"})
        definition = {"type": "bpe", "vocab": sorted(model.vocab.items()), "merges": model.merges}
        own = parse_bpe(json.loads(_make_byte_level({}).to_str())).model_dump(exclude={"model"})
        if rest == own and not model.ignore_merges:
            return definition
        return definition | rest | {"ignore_merges": model.ignore_merges}

    def library_text(self) -> str:
        """Return the library's own text."""
        return str(self._bpe.to_str())


def train_bpe(texts: Iterable[str], V: int) -> Tokenizer:
    """Train V entries on `texts`; the same texts in the same order give the same tokenizer.

    DataError if V leaves no room for the 256 bytes, or if the text gives fewer entries (Sennrich et al., 2016).
    """
    bpe = _make_byte_level({})
    own, rows = bpe.pre_tokenizer, pre_tokenizers.Split(Regex(f".{{{MAX_WORD}}}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([own, rows])
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
    bpe.pre_tokenizer = own
    return BpeTokenizer(parse_bpe(json.loads(bpe.to_str())))


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a file that `save` wrote; nothing in it is executed. DataError naming any other file."""
    try:
        settings = read_json(path, MAX_FILE)
        return BytesTokenizer() if settings == BYTES_FILE else BpeTokenizer(parse_bpe(settings))
    except UnreadableFile as error:
        raise DataError(str(error), _HINT) from None
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer of niels_gpt ({error})", _HINT) from error


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
