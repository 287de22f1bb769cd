"""Sampling: reproducible, within the context, ended by the stop tokens."""

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.generation.generate import draw_token, generate
from niels_gpt.generation.sampling import Sampling
from niels_gpt.model.gpt import GPT

torch.manual_seed(0)
MODEL = GPT(ModelCfg(V=256, T=8, C=16, L=1, H=2, d_ff=32, dropout=0.5, tie_embeddings=True))


def test_the_same_seed_says_the_same_and_another_something_else() -> None:
    texts = [list(generate(MODEL, [1, 2], 20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 20, "longer than T: the model sees the last T"


def test_temperature_0_and_the_smallest_take_the_best_token() -> None:
    first = list(generate(MODEL, [1, 2], 5, temperature=0))
    logits = MODEL.eval()(torch.tensor([[1, 2]]))[0, -1]
    assert first[0] == int(logits.argmax())
    for temperature in (0, 1e-30, 5e-324):
        assert list(generate(MODEL, [1, 2], 5, temperature=temperature, seed=9)) == first


def test_it_ends_before_a_stop_token() -> None:
    said = list(generate(MODEL, [1, 2], 20, seed=1))
    stopped = list(generate(MODEL, [1, 2], 20, seed=1, stop=[said[4]]))
    assert stopped == said[: said.index(said[4])]


def test_only_the_top_k_are_drawn() -> None:
    logits = torch.arange(10.0)
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=100.0, top_k=3)
    assert {draw_token(logits, [], sampling, generator) for _ in range(200)} == {7, 8, 9}
