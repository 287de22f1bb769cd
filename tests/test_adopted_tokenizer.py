"""A tokenizer of others gives its own ids, loses nothing, and lends its tokens to our special ones."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.foreign_tokenizers import RESERVED, make_gpt2, make_llama3

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import DataCfg
from niels_gpt.data.cache.token_cache import build_tokenizer
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import SPECIAL_TOKENS, load_tokenizer

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL_TOKENS
MAKERS = {"gpt2": make_gpt2, "llama3": make_llama3}
SPELT = ["<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", *SPECIAL_TOKENS]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WHOLE = "é漢\n"  # a token that is found before a text is split
any_text = st.lists(
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*SPELT, WHOLE, " \n", "it's 12345"])
)


def change_file(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module", params=MAKERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as its library reads it, and as it is adopted."""
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    theirs = MAKERS[request.param](path)
    theirs.add_tokens([WHOLE, USER])  # which is not a special one in it
    added = json.loads(theirs.to_str())["added_tokens"]
    change_file(path, lambda file: (file.update(added_tokens=added), file["model"].update(dropout=0.5)))
    return theirs, adopt_tokenizer(path).tokenizer


@given(parts=any_text)
def test_it_gives_its_own_ids_and_loses_nothing(both: Any, parts: list[str]) -> None:
    (theirs, ours), text = both, "".join(parts)
    ids, size = ours.encode(text), ours.token_bytes()
    assert ours.decode(ids) == text and not set(ids) & set(ours.special.values())
    assert [[*each] for each in ours.encode_batch([text, *parts])] == [ids, *map(ours.encode, parts)]
    assert sum(size[id] for id in ids) == len(text.encode()) and all(size[id] for id in ids)
    if not any(token in text for token in SPELT):
        assert ids == theirs.encode(text, add_special_tokens=False).ids


def test_its_run_loads_it_again_and_other_programs_read_its_export(both: Any, tmp_path: Path) -> None:
    _, ours = both
    ours.save(tmp_path / "saved.json")
    again, adopted = load_tokenizer(tmp_path / "saved.json"), adopt_tokenizer(tmp_path / "saved.json").tokenizer
    assert (again.V, again.special, again.token_bytes()) == (ours.V, ours.special, ours.token_bytes())
    assert again.hash() == adopted.hash() == ours.hash()
    library = tokenizers.Tokenizer.from_str(ours.library_text())
    text = "the café's cat 12345 sat"
    assert library.encode(text).ids == again.encode(text) == ours.encode(text)
    assert [library.token_to_id(token) for token in SPECIAL_TOKENS] == [*ours.special.values()]
    change_file(tmp_path / "saved.json", lambda file: file.update(pre_tokenizer=BYTE_LEVEL))
    assert load_tokenizer(tmp_path / "saved.json").hash() != ours.hash(), "it splits a text in another way"


CHATML = "{% if m.role == 'system' %}<|im_start|>{% endif %}"
CHATML += "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
OWN_ROLES = (
    "{% if m.content %}<|bos|>{% endif %}{% if m.role == 'user' %}{{ '<|prompter|>' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|bot|>' + m.content + eos_token }}{% endif %}"
)
OWN = ["<|bot|>", "<|bos|>", "<|prompter|>", "<|fin|>"]
BY_TEMPLATE = {USER: "<|prompter|>", ASSISTANT: "<|bot|>", END_OF_TURN: "<|fin|>"}


@pytest.mark.parametrize(
    ("special", "template", "expected"),
    [
        ([], "", {}),
        (["<|im_start|>", "<|im_end|>"], CHATML, {END_OF_TURN: "<|im_end|>"}),
        (OWN, OWN_ROLES, BY_TEMPLATE),
        (OWN, "", {}),
        (OWN, OWN_ROLES.replace("<|prompter|>", "<|bot|>"), {END_OF_TURN: "<|fin|>"}),
        (
            [*RESERVED[:2], *OWN],
            OWN_ROLES.replace("<|prompter|>", RESERVED[0]),
            BY_TEMPLATE | {USER: RESERVED[0], SYSTEM: RESERVED[1]},
        ),
        ([USER, *OWN], OWN_ROLES, BY_TEMPLATE | {USER: USER}),
    ],
)
def test_tokens_of_our_names_then_shown_then_reserved_then_new_ones_are_ours(
    tmp_path: Path, special: list[str], template: str, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = make_gpt2(tmp_path / "tokenizer.json", ["<|endoftext|>", *special])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|fin|>"}')
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer, names = adopt_tokenizer(tmp_path / "tokenizer.json")
    assert names == expected | {END_OF_TEXT: "<|endoftext|>"}
    ids = {token: theirs.token_to_id(name) for token, name in names.items()}
    new = [token for token in SPECIAL_TOKENS if token not in names]
    assert tokenizer.special == ids | {token: id for id, token in enumerate(new, theirs.get_vocab_size())}
    assert tokenizer.V == theirs.get_vocab_size() + len(new)
    caplog.set_level(logging.INFO, "niels_gpt")
    build_tokenizer(DataCfg(tokenizer=str(tmp_path / "tokenizer.json")), "documents", tokenizer.V)
    logged = [f"{token} is {name}" for token, name in names.items() if token != name] + [
        f"new: {', '.join(new)}"
    ] * bool(new)
    assert caplog.messages[0].endswith(f"has {tokenizer.V} entries; {'; '.join(logged)}")


def test_a_template_in_the_config_counts_each_file_is_read_again_if_it_changes_and_is_named_if_it_cannot_be(
    tmp_path: Path,
) -> None:
    make_llama3(tmp_path / "tokenizer.json")
    names = {END_OF_TEXT: END_OF_TEXT, END_OF_TURN: "<|eot_id|>"}
    names |= dict(zip((SYSTEM, USER, ASSISTANT), RESERVED, strict=False))
    assert adopt_tokenizer(tmp_path / "tokenizer.json").names == names
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": [3], "chat_template": [{"name": "a"}]}')
    assert adopt_tokenizer(tmp_path / "tokenizer.json").names == names | {END_OF_TURN: RESERVED[3]}
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json:1:2: invalid JSON"):
        adopt_tokenizer(tmp_path / "tokenizer.json")


def splits(file: Any) -> Any:
    return file["pre_tokenizer"]["pretokenizers"]


def add_the(file: Any) -> None:
    file["added_tokens"].append(file["added_tokens"][0] | {"id": file["model"]["vocab"]["the"], "content": "the"})


CHANGES = "cannot encode .*decoding would not give it back"
REFUSED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "another model": ("its model is WordPiece, not BPE", lambda f: f["model"].update(type="WordPiece")),
    "normalizer": ("it has a normalizer, .*NFC", lambda f: f.update(normalizer={"type": "NFC"})),
    "removes text": (CHANGES, lambda f: splits(f)[0].update(behavior="Removed", pattern={"String": " "})),
    "adds a space": (CHANGES, lambda f: splits(f)[1].update(add_prefix_space=True)),
    "marks words": ("prefix, ##", lambda f: f["model"].update(continuing_subword_prefix="##")),
    "no byte": (
        "no token for the byte 33",
        lambda f: f["model"]["vocab"].update({"!!": f["model"]["vocab"].pop("!")}),
    ),
    "ids": ("its ids do not count from 0", lambda f: f["model"]["vocab"].update(zz=999)),
    "ids of added tokens": ("its ids do not count from 0", lambda f: f["added_tokens"].reverse()),
    "can be spelt": ("cannot encode 'the'", add_the),
    "surrogate": ("unexpected end of hex escape", lambda f: f["added_tokens"][0].update(content="\ud800")),
    "shape": ("it lacks a vocab, or added_tokens", lambda f: f["model"].update(vocab=[["a", 1.0]])),
    "regex": ("end pattern with unmatched", lambda f: splits(f)[0].update(pattern={"Regex": "("})),
}


@pytest.mark.parametrize(("said", "change"), REFUSED.values(), ids=REFUSED)
def test_any_other_file_is_refused_with_what_it_is(
    tmp_path: Path, said: str, change: Callable[[Any], object]
) -> None:
    make_llama3(tmp_path / "tokenizer.json")
    change_file(tmp_path / "tokenizer.json", change)
    with pytest.raises(DataError, match=rf"tokenizer\.json: cannot be used; .*{said}"):
        adopt_tokenizer(tmp_path / "tokenizer.json")


def test_a_pattern_without_end_is_an_error_and_no_crash(tmp_path: Path) -> None:
    make_llama3(tmp_path / "tokenizer.json")
    change_file(tmp_path / "tokenizer.json", lambda file: splits(file)[0].update(pattern={"Regex": "(a+)+$"}))
    tokenizer = adopt_tokenizer(tmp_path / "tokenizer.json").tokenizer
    with pytest.raises(DataError, match="the tokenizer cannot encode 'aaaa"):
        tokenizer.encode("a" * 50 + "!")
