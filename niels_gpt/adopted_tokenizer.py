"""Adopt a Hugging Face tokenizer: tokens of its own take the part, and the names, of our special tokens."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from niels_gpt.bpe_file import AddedToken, BpeFile, parse_bpe
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import (
    ASSISTANT,
    BYTES_FILE,
    END_OF_TEXT,
    END_OF_TURN,
    MAX_FILE,
    SPECIAL_TOKENS,
    SYSTEM,
    USER,
    BpeTokenizer,
    BytesTokenizer,
    Tokenizer,
)
from niels_gpt.untrusted import UnreadableFile, read_json, read_text

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"  # beside the file
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
# The letters of well-known names, such as <|endoftext|>, <|end_of_text|> and </s>, or <|im_end|> and <|eot_id|>.
NAMES = {
    END_OF_TEXT: ("endoftext", "endofsentence", "eos", "/s"),
    END_OF_TURN: ("imend", "eotid", "endofturn", "eot", "end"),
    **{token: (role,) for role, token in ROLES.items()},
}
TEMPLATE_PART = re.compile(
    r"""['"](?P<role>system|user|assistant)['"]|(?P<content>\.content\b|\[['"]content['"]\])|(?P<end>%\})"""
    r"|(?P<token><[^<>\s]{1,64}>|\beos_token\b)"
)


class Adopted(NamedTuple):
    """A tokenizer, and the name in its file of each special token that is not new."""

    tokenizer: Tokenizer
    names: dict[str, str]


def adopt_tokenizer(path: Path) -> Adopted:
    """Return the byte-level BPE of a tokenizer.json, such as GPT-2's or Llama 3's; nothing in it is executed.

    Each special token is the one of its name, else the one that the chat template beside the file has in its
    place, else one with a well-known name, else a reserved one, else a new one at the end. A file is read again
    only if it has changed. DataError if it is another kind of tokenizer.
    """
    files = [file for file in (path, path.with_name(TEMPLATE), path.with_name(CONFIG)) if file.is_file()]
    return _adopt(path, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=2)
def _adopt(path: Path, _stamps: tuple[Any, ...]) -> Adopted:
    try:
        settings = read_json(path, MAX_FILE)
        if settings == BYTES_FILE:
            return Adopted(BytesTokenizer(), {token: token for token in SPECIAL_TOKENS})
        file = parse_bpe(settings)
        names = _choose_names(file, path)
        tokenizer = BpeTokenizer(_rename(file, names))
        # In the form in which it will be saved, so that both have one hash.
        return Adopted(BpeTokenizer(parse_bpe(json.loads(tokenizer.library_text()))), names)
    except (UnreadableFile, ValueError) as error:
        reason = str(error) if isinstance(error, UnreadableFile) else f"{path}: cannot be used; {error}"
        raise DataError(
            reason, "give the tokenizer.json of a byte-level BPE, such as GPT-2's or Llama 3's"
        ) from None


def _choose_names(file: BpeFile, path: Path) -> dict[str, str]:
    """Return the entry of the file that each of our special tokens takes."""
    own = [token.content for token in sorted(file.added_tokens, key=lambda token: token.id) if token.special]
    by_letters = {re.sub("[^a-z/]", "", token.lower()): token for token in reversed(own)}
    reserved = [token for token in own if "reserved" in token]
    shown = _read_template(path, {*own})
    names = {token: token for token in SPECIAL_TOKENS if token in file.vocab}
    for choices in (
        lambda token: [shown.get(token) if token != END_OF_TEXT else None, *map(by_letters.get, NAMES[token])],
        lambda token: reserved,
    ):
        for token in SPECIAL_TOKENS:
            free = [name for name in choices(token) if name and name not in names.values()]
            if token not in names and free:
                names[token] = free[0]
    return names


def _read_template(path: Path, own: set[str]) -> dict[str, str]:
    """Return the end of turn and the roles' tokens that the chat template shows; it is searched, never run."""
    template_path, config_path = path.with_name(TEMPLATE), path.with_name(CONFIG)
    config = read_json(config_path) if config_path.is_file() else {}
    config = config if isinstance(config, dict) else {}
    template = read_text(template_path, 1 << 20) if template_path.is_file() else config.get("chat_template")
    eos = config.get("eos_token")
    eos = str(eos.get("content") if isinstance(eos, dict) else eos)
    shown: dict[str, str] = {}
    part = ""  # what the next token would be
    for match in TEMPLATE_PART.finditer(template if isinstance(template, str) else ""):
        if match["role"] or match["content"]:
            part = ROLES[match["role"]] if match["role"] else END_OF_TURN
        elif match["end"]:
            part = part if part != END_OF_TURN else ""
        elif (name := match["token"].replace("eos_token", eos)) in own:
            if part:
                shown.setdefault(part, name)
            part = ""
    roles = [shown[token] for token in ROLES.values() if token in shown]
    if {USER, ASSISTANT} <= shown.keys() and len({*roles}) == len(roles):
        return shown
    return {END_OF_TURN: shown[END_OF_TURN]} if END_OF_TURN in shown else {}


def _rename(file: BpeFile, names: dict[str, str]) -> BpeFile:
    """Return a file in which our special tokens have their own names; those without a name come at the end."""
    vocab, ours = file.vocab, {theirs: token for token, theirs in names.items()}
    new = [token for token in SPECIAL_TOKENS if token not in names]
    ids = {token: vocab[theirs] for token, theirs in names.items()}
    ids |= {token: id for id, token in enumerate(new, len(vocab))}
    added = [token for token in file.added_tokens if token.content not in ours]
    added += [AddedToken(id=id, content=token, special=True) for token, id in ids.items()]
    entries = {ours.get(token, token): id for token, id in file.model.vocab.items()}
    model = file.model.model_copy(update={"vocab": entries})
    return file.model_copy(update={"added_tokens": sorted(added, key=lambda token: token.id), "model": model})
