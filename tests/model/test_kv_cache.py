"""The cache changes the time that logits take, and no logit beyond rounding."""

import pytest
import torch

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from niels_gpt.model.kv_cache import KVCache

T = 32


def make_model(**settings: int | bool) -> GPT:
    """Return a model whose logits are as large as a trained one's."""
    torch.manual_seed(0)
    shape = {"V": 300, "T": T, "C": 64, "L": 3, "H": 4, "d_ff": 96, "dropout": 0.5, "tie_embeddings": True}
    model = GPT(ModelCfg.model_validate(shape | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def read_whole(model: GPT, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]))[0, -1]
        return logits


@pytest.mark.parametrize("settings", [{}, {"H_kv": 2}, {"H_kv": 1, "tie_embeddings": False}])
def test_logits_are_those_of_the_whole_text(settings: dict[str, int | bool]) -> None:
    model = make_model(**settings)
    cache, ids = KVCache(model), torch.randint(300, (T,)).tolist()
    other = [*ids[:9], 1, 2, 3]  # begins alike
    texts = [ids[:5], *(ids[:n] for n in range(6, T + 1)), other, ids[:20], ids[:12], ids[3:], ids]
    for text in texts:
        assert (cache.logits(text) - read_whole(model, text)).abs().max() < 1e-5
        assert cache.ids == text


@pytest.mark.parametrize("H_kv", [4, 2])
def test_on_mps_the_logits_are_the_same_and_the_shapes_are_few(monkeypatch: pytest.MonkeyPatch, H_kv: int) -> None:
    """Each new shape would keep memory there. The way of mps is taken on the CPU."""
    monkeypatch.setattr("niels_gpt.model.kv_cache.DEVICE", "another")
    model, lengths = make_model(H_kv=H_kv, T=24), set()
    cache, ids = KVCache(model), torch.randint(300, (24,)).tolist()
    model.embedding.register_forward_hook(lambda _, inputs, __: lengths.add(len(inputs[0])))
    begins = [ids[:n] for n in (5, 6, 7, 16, 17, 23, 24)]
    for text in [*begins, *([*ids[:at], 1, *ids[at + 1 :]] for at in range(24))]:
        assert (cache.logits(text) - read_whole(model, text)).abs().max() < 1e-5
    lengths -= {len(text) for text in begins} - {1, 2, 4, 8, 16, 24}  # those of the whole texts
    assert lengths == {1, 2, 4, 8, 16, 24}


def test_under_autocast_the_blocks_have_its_precision_and_the_head_has_not() -> None:
    model, ids = make_model(), torch.randint(300, (T,)).tolist()
    exact, cache = read_whole(model, ids), KVCache(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = (read_whole(model, ids) - exact).abs().mean()
        cache.logits(ids[:-3])
        logits = cache.logits(ids)
    assert expected / 2 < (logits - exact).abs().mean() < 2 * expected
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).any()


def test_keys_of_shared_heads_are_kept_once() -> None:
    cache = KVCache(make_model(H_kv=1))
    assert cache.keys.shape == cache.values.shape == (3, 1, T, 16)


def test_a_pass_that_fails_half_way_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), torch.randint(300, (T,)).tolist()
    cache = KVCache(model)
    cache.logits(ids[:20])
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.silu", lambda _: 1 / 0)  # the keys of the first block are written
        with pytest.raises(ZeroDivisionError):
            cache.logits([*ids[:9], *ids[20:]])
    assert (cache.logits(ids[:20]) - read_whole(model, ids[:20])).abs().max() < 1e-5


@pytest.mark.parametrize("count", [0, T + 1])
def test_a_text_that_the_model_cannot_read_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} ids, but the model reads 1 to {T}"):
        KVCache(make_model()).logits([1] * count)
