"""A tokenizer of others gives its own ids, loses nothing, and lends its tokens to our special ones."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.foreign_tokenizers import RESERVED, make_gpt2, make_llama3

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import (
    ASSISTANT,
    END_OF_TEXT,
    END_OF_TURN,
    SPECIAL_TOKENS,
    SYSTEM,
    USER,
    BytesTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

MAKERS = {"gpt2": make_gpt2, "llama3": make_llama3}
SPELT = ["<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", *SPECIAL_TOKENS]
any_text = st.lists(
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*SPELT, " \n", "it's 12345"])
)


@pytest.fixture(scope="module", params=MAKERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as its library reads it, and as it is adopted."""
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    return MAKERS[request.param](path), adopt_tokenizer(path).tokenizer


@given(parts=any_text)
def test_it_gives_its_own_ids_and_loses_nothing(
    both: tuple[tokenizers.Tokenizer, Tokenizer], parts: list[str]
) -> None:
    theirs, ours = both
    text = "".join(parts)
    ids, size = ours.encode(text), ours.token_bytes()
    assert ours.decode(ids) == text and not set(ids) & set(ours.special.values())
    assert sum(size[id] for id in ids) == len(text.encode()) and all(size[id] for id in ids)
    if not any(token in text for token in SPELT):
        assert ids == theirs.encode(text, add_special_tokens=False).ids


def test_its_run_loads_it_again_and_other_programs_read_its_export(both: Any, tmp_path: Path) -> None:
    _, ours = both
    ours.save(tmp_path / "saved.json")
    again, adopted = load_tokenizer(tmp_path / "saved.json"), adopt_tokenizer(tmp_path / "saved.json").tokenizer
    assert (again.V, again.special, again.token_bytes()) == (ours.V, ours.special, ours.token_bytes())
    assert again.hash() == adopted.hash() == ours.hash() != train_bpe(["a"], 261).hash()
    library = tokenizers.Tokenizer.from_str(ours.library_text())
    text = "the café's cat 12345 sat"
    assert library.encode(text).ids == again.encode(text) == ours.encode(text)
    assert [library.token_to_id(token) for token in SPECIAL_TOKENS] == [*ours.special.values()]


def test_well_known_then_reserved_then_new_tokens_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    theirs = make_gpt2(path)
    tokenizer, names = adopt_tokenizer(path)
    assert names == {END_OF_TEXT: "<|endoftext|>"} and tokenizer.V == theirs.get_vocab_size() + 4
    assert tokenizer.special[END_OF_TEXT] == theirs.token_to_id("<|endoftext|>")

    theirs = make_llama3(path)
    tokenizer, names = adopt_tokenizer(path)
    roles = dict(zip((SYSTEM, USER, ASSISTANT), RESERVED, strict=False))
    assert names == {END_OF_TEXT: END_OF_TEXT, END_OF_TURN: "<|eot_id|>", **roles}
    assert tokenizer.V == theirs.get_vocab_size()
    assert tokenizer.special == {token: theirs.token_to_id(names[token]) for token in SPECIAL_TOKENS}


CHATML = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
OWN_ROLES = (
    "{% if m['role'] == 'user' %}{{ '<|prompter|>' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|bot|>' + m['content'] + eos_token }}{% endif %}"
)


@pytest.mark.parametrize(
    ("special", "template", "expected"),
    [
        (["<|im_start|>", "<|im_end|>"], CHATML, {END_OF_TURN: "<|im_end|>"}),
        (["<｜User｜>", "<｜Assistant｜>"], "", {USER: "<｜User｜>", ASSISTANT: "<｜Assistant｜>"}),
        (
            ["<|bot|>", "<|prompter|>", "<|fin|>"],
            OWN_ROLES,
            {USER: "<|prompter|>", ASSISTANT: "<|bot|>", END_OF_TURN: "<|fin|>"},
        ),
        (["<|bot|>", "<|prompter|>", "<|fin|>"], "", {}),
    ],
)
def test_the_chat_template_shows_which_tokens_are_ours(
    tmp_path: Path, special: list[str], template: str, expected: dict[str, str]
) -> None:
    make_gpt2(tmp_path / "tokenizer.json", ["<|endoftext|>", *special])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|fin|>"}')
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert adopt_tokenizer(tmp_path / "tokenizer.json").names == expected | {END_OF_TEXT: "<|endoftext|>"}


def test_our_own_files_are_adopted_as_they_are(tmp_path: Path) -> None:
    for n, own in enumerate((BytesTokenizer(), train_bpe(["a cat"], 262))):
        own.save(tmp_path / f"{n}.json")
        assert adopt_tokenizer(tmp_path / f"{n}.json").tokenizer.hash() == own.hash()


def test_a_token_found_before_the_text_is_split_has_its_own_bytes(tmp_path: Path) -> None:
    content = written(tmp_path, make_gpt2)
    content["added_tokens"].append({"id": 301, "content": "é漢\n", "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = adopt_tokenizer(tmp_path / "tokenizer.json").tokenizer
    assert tokenizer.encode("é漢\n") == [301] and tokenizer.token_bytes()[301] == 6
    assert tokenizer.decode(tokenizer.encode("aé漢\nb")) == "aé漢\nb"


def written(folder: Path, make: Callable[[Path], object]) -> Any:
    make(folder / "tokenizer.json")
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def split(f: Any, at: int = 0) -> Any:
    return f["pre_tokenizer"]["pretokenizers"][at]


WORD_PIECE, METASPACE = {"type": "WordPiece", "vocab": {"a": 0}}, {"type": "Metaspace"}
MADE = {"content": "the", "special": True}
REFUSED: dict[str, Callable[[Any], object]] = {
    "its model.type is WordPiece, not 'BPE'": lambda f: f.update(model=WORD_PIECE),
    "it has a normalizer, NFC": lambda f: f.update(normalizer={"type": "NFC"}),
    "its pre_tokenizer is Metaspace, not 'ByteLevel', 'Sequence'": lambda f: f.update(pre_tokenizer=METASPACE),
    "behavior is Removed, not 'Isolated'": lambda f: split(f).update(behavior="Removed"),
    "ByteLevel must come last, and only once": lambda f: f["pre_tokenizer"]["pretokenizers"].pop(),
    "add_prefix_space is True, not False": lambda f: split(f, 1).update(add_prefix_space=True),
    "model: byte_fallback is not supported": lambda f: f["model"].update(byte_fallback=True),
    "no token for the byte 33": lambda f: f["model"]["vocab"].update({"!!": f["model"]["vocab"].pop("!")}),
    "its ids do not count from 0": lambda f: f["model"]["vocab"].update(zz=999),
    "merges make the added token 'the'": lambda f: f["added_tokens"].append(
        MADE | {"id": f["model"]["vocab"]["the"]}
    ),
    "takes in spaces": lambda f: f["added_tokens"][-1].update(special=False, rstrip=True),
    "added_tokens.0.content": lambda f: f["added_tokens"][0].update(content="\ud800"),
    "model.vocab": lambda f: f["model"].update(vocab=[["a", 1.0]]),
    "pre_tokenizer: Field required": lambda f: f.pop("pre_tokenizer"),
    "end pattern with unmatched parenthesis": lambda f: split(f).update(pattern={"Regex": "("}),
}


@pytest.mark.parametrize(("said", "change"), REFUSED.items(), ids=REFUSED)
def test_any_other_file_is_refused_with_what_it_is(
    tmp_path: Path, said: str, change: Callable[[Any], object]
) -> None:
    content = written(tmp_path, make_llama3)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"tokenizer\.json: cannot be used; .*{said}"):
        adopt_tokenizer(tmp_path / "tokenizer.json")


def test_a_word_that_a_text_can_spell_is_no_special_token(tmp_path: Path) -> None:
    content = written(tmp_path, lambda path: make_gpt2(path, ["<|endoftext|>", "hello"]))
    content["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="a text can spell its added token 'hello'"):
        adopt_tokenizer(tmp_path / "tokenizer.json")


def test_a_pattern_without_end_is_an_error_and_no_crash(tmp_path: Path) -> None:
    content = written(tmp_path, make_llama3)
    split(content)["pattern"] = {"Regex": "(a+)+$"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = adopt_tokenizer(tmp_path / "tokenizer.json").tokenizer
    with pytest.raises(DataError, match="the tokenizer cannot encode 'aaaa"):
        tokenizer.encode("a" * 50 + "!")


def test_files_beside_it_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    make_llama3(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json:1:2: invalid JSON"):
        adopt_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": [3], "chat_template": [{"name": "a"}]}')
    assert adopt_tokenizer(tmp_path / "tokenizer.json").names[END_OF_TURN] == "<|eot_id|>"


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    make_gpt2(path)
    first = adopt_tokenizer(path).tokenizer
    with mock.patch("niels_gpt.adopted_tokenizer.read_json", side_effect=AssertionError):
        assert adopt_tokenizer(path).tokenizer is first
    make_gpt2(path, ["<|eos|>", "<|end|>"])
    os.utime(path, ns=(1, 1))
    assert adopt_tokenizer(path).names == {END_OF_TEXT: "<|eos|>", END_OF_TURN: "<|end|>"}
