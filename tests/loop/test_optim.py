"""The schedule counts steps and is never 0 at first; decay is for matrices only."""

import pytest
import torch

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from train.config.schema import TrainCfgSchema
from train.loop.optim import lr_at, make_optimizer, set_lr

CFG = TrainCfgSchema(optim="adamw", schedule="cosine", total_steps=100, warmup_steps=10, base_lr=1.0, min_lr=0.1)


def test_the_learning_rate_warms_up_then_falls_to_min_lr() -> None:
    rates = [lr_at(step, CFG) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == lr_at(1000, CFG) == pytest.approx(0.1)


def test_a_linear_schedule_falls_in_a_line_to_min_lr() -> None:
    linear = CFG.model_copy(update={"schedule": "linear"})
    assert [lr_at(step, linear) for step in (10, 40, 55, 100)] == pytest.approx([1.0, 0.7, 0.55, 0.1])


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_first_update_learns_something(warmup: int) -> None:
    for total in (5, 6):
        assert lr_at(0, TrainCfgSchema(total_steps=total, warmup_steps=warmup)) > 0


def test_decay_is_for_matrices_only_and_every_parameter_is_in_one_group() -> None:
    model = GPT(ModelCfg(V=256, T=8, C=16, L=2, H=2, d_ff=32, tie_embeddings=True))
    optimizer = make_optimizer(model, CFG)
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == CFG.weight_decay and others["weight_decay"] == 0
    assert all(p.dim() == 2 for p in decayed["params"]) and all(p.dim() == 1 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("tie", [False, True])
def test_with_muon_the_matrices_of_the_blocks_are_its_own_and_adamw_has_the_rest(tie: bool) -> None:
    model = GPT(ModelCfg(V=256, T=8, C=16, L=2, H=2, d_ff=32, tie_embeddings=tie))
    optimizer = make_optimizer(model, CFG.model_copy(update={"optim": "muon"}))
    matrices, vectors, hidden = optimizer.param_groups
    assert {id(p) for p in hidden["params"]} == {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    assert [p.shape for p in matrices["params"]] == [(256, 16)] * (1 if tie else 2)
    assert all(p.dim() == 1 for p in vectors["params"]) and vectors["weight_decay"] == 0
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_learning_rate_reaches_every_part_after_a_state_was_put_back_too() -> None:
    model = GPT(ModelCfg(V=256, T=8, C=16, L=1, H=2, d_ff=32, tie_embeddings=True))
    optimizer = make_optimizer(model, CFG.model_copy(update={"optim": "muon"}))
    optimizer.load_state_dict(optimizer.state_dict())
    set_lr(optimizer, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(then, now) for then, now in zip(before, model.parameters(), strict=True))
