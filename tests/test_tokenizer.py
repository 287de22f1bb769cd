"""Tokenizers lose nothing, and read nothing in a text as a special token."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import SPECIAL_TOKENS, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe

TEXTS = [
    "the cat sat on the mat, the dog sat on the cat\n" * 3,
    "naïve café 漢字 😀 def f(x):\n    return x\n" * 3,
]
V = 300
BPE, BYTES = train_bpe(TEXTS, V), BytesTokenizer()
both = pytest.mark.parametrize("tok", [BPE, BYTES], ids=["bpe", "bytes"])
# Any text there is, special tokens spelled out and cut among it.
any_text = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "\0", "\r\n"])
).map("".join)


@both
@given(text=any_text)
def test_encoding_loses_nothing_and_yields_no_special_token(tok: Tokenizer, text: str) -> None:
    ids, size = tok.encode(text), tok.token_bytes()
    assert tok.decode(ids) == text
    assert not set(ids) & set(tok.special.values())
    assert all(0 <= i < tok.V for i in ids)
    assert sum(size[i] for i in ids) == len(text.encode())


@both
def test_each_special_token_has_its_own_id_no_bytes_and_is_left_out_of_text(tok: Tokenizer) -> None:
    assert tuple(tok.special) == SPECIAL_TOKENS
    assert [i for i, n in enumerate(tok.token_bytes()) if n == 0] == [*tok.special.values()]
    assert tok.decode([*tok.encode("one "), *tok.special.values(), *tok.encode("two")]) == "one two"
    assert tok.decode(tok.encode("a\U0001f9ff")[:-1]) == "a\ufffd"  # not in the training text, so several tokens


@both
def test_a_lone_surrogate_and_an_id_that_is_not_there_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tok.encode("ab\ud800")
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tok.encode_batch(["fine", "a \ud800"])
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        train_bpe(["fine", "ab\ud800"], V)
    for wrong in (-1, tok.V):
        with pytest.raises(DataError, match=str(wrong)):
            tok.decode([65, wrong])


NASTY = "ab I's '12,.!\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000é漢😀_-\u180e\ufeff\u0301٣"


@pytest.mark.parametrize("letters", [NASTY, "".join(map(chr, range(128))), "".join(map(chr, range(0x3100)))])
def test_a_batch_has_the_ids_that_each_text_has_alone(letters: str) -> None:
    draw = random.Random(0)  # merges of random text join whatever can be in one word
    bpe = train_bpe(["".join(draw.choices(NASTY + "  !\x1c\n", k=200)) for _ in range(1000)], 3000)
    texts = ["".join(draw.choices(letters + NASTY[:19], k=draw.randint(0, 40))) for _ in range(3000)]
    assert [[*ids] for ids in bpe.encode_batch(texts)] == [bpe.encode(text) for text in texts]


def test_known_words_are_forgotten_when_there_are_too_many() -> None:
    texts = [f"{n} {'x' * n}" for n in range(90)]
    with mock.patch("niels_gpt.tokenizer.KNOWN_SIZE", 9999):
        bpe = train_bpe(TEXTS, V)
        for part in (texts[at : at + 9] for at in range(0, 90, 9)):
            assert [[*ids] for ids in bpe.encode_batch(part)] == [bpe.encode(text) for text in part]


def test_bytes_are_their_own_ids_and_bpe_merges_what_is_frequent() -> None:
    assert (BYTES.V, BPE.V, len(BPE.encode(" the cat"))) == (256, V, 2)
    assert BYTES.encode("é<|user|>") == list("é<|user|>".encode())
    assert [*BYTES.special.values(), *BPE.special.values()] == [0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0, 1, 2, 3, 4]
    text = "<|user|>hi<|end_of_turn|>" * 20
    tok = train_bpe([text], 275)  # the spellings teach no special token
    assert tok.decode(tok.encode(text)) == text


def test_any_process_trains_the_same_tokenizer_and_its_fork_can_encode_and_prints_no_warning() -> None:
    code = (
        "import os; from niels_gpt.tokenizer import train_bpe\n"
        f"tok = train_bpe({TEXTS!r}, {V})\n"
        "if (pid := os.fork()) == 0: os._exit(tok.decode(tok.encode('ab' * 9)) == 'ab' * 9)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), tok.hash())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}  # Python's own about threads
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"1 {BPE.hash()}\n", "")
    assert BPE.hash() == "21a27ae78292eb403fcada308561255175c2bcff601a248b7375148b02bb1e62", (
        "or older runs cannot be continued"
    )


def test_a_V_that_the_text_cannot_have_is_refused_with_one_that_it_can() -> None:
    for texts, asked, n, hint in (
        (["ab ab"], 300, 263, "use model.V=263 or less, add text, or data.tokenizer=bytes model.V=256"),
        ([], 260, 261, "use model.V=261 or more, or data.tokenizer=bytes model.V=256"),
    ):
        with pytest.raises(DataError, match=f"V={asked}, but a BPE of this text has {n} ent") as caught:
            train_bpe(texts, asked)
        assert (caught.value.hint, train_bpe(texts, n).V) == (hint, n)


@both
def test_a_saved_tokenizer_comes_back_the_same_in_place_of_an_older_file(tok: Tokenizer, tmp_path: Path) -> None:
    path, older = tmp_path / "tokenizer.json", tmp_path / "older.json"
    path.write_text("an older one")
    os.link(path, older)
    tok.save(path)
    again, text = load_tokenizer(path), "the cat <|user|> 漢 \0"
    assert (again.V, again.special, again.hash()) == (tok.V, tok.special, tok.hash())
    assert adopt_tokenizer(path).tokenizer.hash() == tok.hash()
    assert (again.encode(text), again.token_bytes()) == (tok.encode(text), tok.token_bytes())
    assert older.read_text() == "an older one", "it was written into, not replaced"
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "older.json"}


def test_any_other_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "garbage.json"
    lacking = json.loads(BPE.library_text())
    lacking["added_tokens"].pop()
    with_gap = json.loads(BPE.library_text())
    with_gap["model"]["vocab"]["zz"] = V + 1
    for content, said in {
        json.dumps(lacking).encode(): r"garbage.json: not a tokenizer of niels_gpt \(it has no special token",
        json.dumps(with_gap).encode(): "its ids do not count from 0",
        b"[]": "garbage.json: not a tokenizer",
        b"[" * 100_000: "garbage.json: invalid JSON",
        b"\xff\xfe": "garbage.json:1: not UTF-8",
        bytes((64 << 20) + 1): f"garbage.json: larger than {64 << 20} bytes",
    }.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            load_tokenizer(path)
    with pytest.raises(DataError, match=r"missing\.json: cannot be read"):
        load_tokenizer(tmp_path / "missing.json")
