"""Adopt a Hugging Face tokenizer: tokens of its own take the part, and the names, of our special tokens."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from niels_gpt.bpe_file import build_bpe
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import BYTES_FILE, MAX_FILE, SPECIAL_TOKENS, BpeTokenizer, BytesTokenizer, Tokenizer
from niels_gpt.untrusted import UnreadableFile, read_json, read_text

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL_TOKENS
TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"  # beside the file
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
END_LETTERS = {"endoftext", "endofsentence", "eos", "/s"}  # of <|endoftext|>, </s> and the like
TEMPLATE_PART = re.compile(
    r"""['"](?:system|user|assistant)['"]|\.content\b|\[['"]content['"]\]|%\}|<[^<>\s]{1,64}>|\beos_token\b"""
)


class Adopted(NamedTuple):
    """A tokenizer, and the name in its file of each special token that is not new."""

    tokenizer: Tokenizer
    names: dict[str, str]


def adopt_tokenizer(path: Path) -> Adopted:
    """Return the byte-level BPE of a tokenizer.json, such as GPT-2's or Llama 3's; nothing in it is executed.

    Each special token is the one of its name, else the one that the chat template beside the file has in its
    place (for the end of text, one with a well-known name), else a reserved one, else a new one at the end.
    A file is read again only if it has changed. DataError if it is another kind of tokenizer.
    """
    stats = [file.stat() for file in (path, *map(path.with_name, (TEMPLATE, CONFIG))) if file.is_file()]
    return _adopt(path, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=2)
def _adopt(path: Path, _stamps: tuple[Any, ...]) -> Adopted:
    try:
        settings = read_json(path, MAX_FILE)
        bpe = None if settings == BYTES_FILE else build_bpe(settings)
        if bpe is None or bpe.get_vocab() == BytesTokenizer().symbols():  # the second in an export
            return Adopted(BytesTokenizer(), {token: token for token in SPECIAL_TOKENS})
        names = _choose_names(bpe, path)
        return Adopted(BpeTokenizer(_rename(bpe, names)), names)
    except (ValueError, DataError) as error:
        reason = str(error) if isinstance(error, UnreadableFile) else f"{path}: cannot be used; {error}"
        hint = "give the tokenizer.json of a byte-level BPE, such as GPT-2's or Llama 3's"
        raise DataError(reason, hint) from None


def _choose_names(bpe: tokenizers.Tokenizer, path: Path) -> dict[str, str]:
    """Return the token of the file that takes the part of each of our special tokens."""
    own = [token.content for _, token in sorted(bpe.get_added_tokens_decoder().items()) if token.special]
    ends = [token for token in own if re.sub("[^a-z/]", "", token.lower()) in END_LETTERS]
    shown = _read_template(path, {*own})
    reserved = [token for token in own if "reserved" in token and token not in shown.values()]
    names = {token: token for token in SPECIAL_TOKENS if bpe.token_to_id(token) is not None}
    for token in SPECIAL_TOKENS:
        choices = [*(ends if token == END_OF_TEXT else [shown.get(token)]), *reserved]
        free = [name for name in choices if name and name not in names.values()]
        if free and token not in names:
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
    place = ""  # of the next token
    for part in TEMPLATE_PART.findall(template if isinstance(template, str) else ""):
        if (name := eos if part == "eos_token" else part) in own:
            if place:
                shown.setdefault(place, name)
            place = ""
        elif part == "%}":
            place = place if place != END_OF_TURN else ""
        elif part[0] in ".['\"":
            place = ROLES.get(part.strip("'\""), END_OF_TURN)
    if not {USER, ASSISTANT} <= shown.keys() or len({*shown.values()}) < len(shown):
        shown = {token: name for token, name in shown.items() if token == END_OF_TURN}  # it shows no roles' tokens
    return shown


def _rename(bpe: tokenizers.Tokenizer, names: dict[str, str]) -> tokenizers.Tokenizer:
    """Return a tokenizer in which our special tokens have their own names; new ones come at the end."""
    settings, ours = json.loads(bpe.to_str()), {theirs: token for token, theirs in names.items()}
    model = settings["model"]
    model["vocab"] = {ours.get(token, token): id for token, id in model["vocab"].items()}
    for token in settings["added_tokens"]:
        token["content"] = ours.get(token["content"], token["content"])
    renamed = build_bpe(settings)
    renamed.add_special_tokens([*SPECIAL_TOKENS])  # one that is there keeps its id
    return renamed
