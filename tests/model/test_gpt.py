"""The model: causal, of Llama's kind, the same with recomputation (promise 4) and under a trace (promise 6)."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from niels_gpt import loss as loss_module
from niels_gpt.config import ModelCfg
from niels_gpt.loss import IGNORE, next_token_loss
from niels_gpt.model import gpt as gpt_module
from niels_gpt.model import replay
from niels_gpt.model.gpt import GPT

CFG = ModelCfg(V=300, T=16, C=32, L=3, H=4, d_ff=64, tie_embeddings=True)
IDS = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))


def model(dropout: float = 0.0, *, activation_checkpointing: bool = False) -> GPT:
    torch.manual_seed(1)
    return GPT(CFG.model_copy(update={"dropout": dropout}), activation_checkpointing=activation_checkpointing)


def learn(network: GPT) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients of one training pass with a fixed dropout."""
    torch.manual_seed(2)
    loss = next_token_loss(network.train()(IDS), IDS, IDS.numel())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_changes_no_bit_of_loss_or_gradient(dropout: float) -> None:
    loss, gradients = learn(model(dropout))
    again, others = learn(model(dropout, activation_checkpointing=True))
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys() == dict(model().named_parameters()).keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@pytest.mark.parametrize("replayed", [True, False])
def test_recomputation_replays_a_device_state_that_pytorch_does_not(
    monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """An emulated mps: its dropout draws from a generator of its own. Without the replay gradients are wrong."""
    device_state = torch.Generator().manual_seed(5)

    class Emulated(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(x.shape, generator=device_state) > 0.3) / 0.7

    def gradients(*, activation_checkpointing: bool) -> tuple[dict[str, Tensor], Tensor]:
        network = model(0.3, activation_checkpointing=activation_checkpointing)
        for block in network.blocks:
            block.dropout = Emulated()
        device_state.manual_seed(5)
        return learn(network)[1], device_state.get_state()

    monkeypatch.setattr(replay, "get_random_state", lambda _: device_state.get_state())
    monkeypatch.setattr(replay, "set_random_state", lambda _, state: device_state.set_state(state))
    if replayed:  # as on a device other than the CPU
        contexts = {"context_fn": lambda: (nullcontext(), replay.ReplayState(torch.device("cpu")))}
        monkeypatch.setattr(GPT, "_replay_options", lambda _: contexts)
    expected, stream = gradients(activation_checkpointing=False)
    recomputed, stream_after = gradients(activation_checkpointing=True)
    exact = all(torch.equal(expected[name], recomputed[name]) for name in expected)
    assert exact is replayed
    if replayed:
        assert torch.equal(stream, stream_after), "the live stream must go on as without recomputation"


def test_the_device_state_is_replayed_off_the_cpu_and_only_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "device", property(lambda self: torch.device("mps")))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.zeros(1))
    contexts = model(0.3)._replay_options()["context_fn"]()
    assert isinstance(contexts[1], replay.ReplayState) and torch.equal(contexts[1].recorded, torch.zeros(1))
    assert not model(0.0)._replay_options()


def test_dropout_is_at_work_in_training_and_rests_in_evaluation() -> None:
    assert not torch.equal(learn(model(0.3))[0], learn(model(0.0))[0])
    assert torch.equal(model(0.3).eval()(IDS), model(0.0).eval()(IDS))


def test_blocks_are_recomputed_only_when_asked_for_in_training_and_untraced() -> None:
    def recomputed(network: GPT, trace: list[Tensor] | None = None) -> int:
        with mock.patch.object(gpt_module, "checkpoint", wraps=checkpoint) as spy:
            network(IDS, trace)
        assert all(call.kwargs["use_reentrant"] is False for call in spy.call_args_list)
        assert all(call.args[0] in network.blocks for call in spy.call_args_list)
        return int(spy.call_count)

    asked = model(activation_checkpointing=True)
    assert recomputed(asked.train()) == CFG.L
    assert recomputed(asked.train(), []) == 0
    assert recomputed(asked.eval()) == 0
    assert recomputed(model().train()) == 0


def test_recomputation_keeps_fewer_tensors_for_the_backward_pass() -> None:
    def kept(network: GPT) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(IDS)
        return sum(sizes.values())

    assert kept(model(activation_checkpointing=True)) < 0.5 * kept(model())


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_trace_gives_each_blocks_attention_and_changes_no_logit_beyond_rounding(
    activation_checkpointing: bool,
) -> None:
    network = model(activation_checkpointing=activation_checkpointing).train()
    trace: list[Tensor] = []
    logits = network(IDS, trace)
    assert [tuple(probabilities.shape) for probabilities in trace] == [(2, CFG.H, 16, 16)] * CFG.L
    for probabilities in trace:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, CFG.H, 16))
        assert (probabilities.triu(1) == 0).all()
    torch.testing.assert_close(logits, network(IDS), rtol=1e-5, atol=1e-6)


def test_no_position_sees_what_comes_after_it() -> None:
    network = model().eval()
    changed = IDS.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % CFG.V
    before, after = network(IDS), network(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_positions_are_told_apart() -> None:
    network = model().eval()
    swapped = IDS[:1].clone()
    swapped[0, [2, 3]] = swapped[0, [3, 2]]
    assert not torch.allclose(network(IDS[:1])[0, -1], network(swapped)[0, -1])


def test_a_new_model_knows_nothing() -> None:
    loss = next_token_loss(model()(IDS), IDS.roll(1, -1), IDS.numel())
    assert abs(loss.item() - torch.tensor(300.0).log().item()) < 0.3


def test_weights_are_of_llamas_kind() -> None:
    network = model()
    assert not [name for name, _ in network.named_parameters() if name.endswith("bias")]
    expected = 300 * 32 + 3 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert network.parameter_count() == expected  # the head is the embedding
    assert all(name.startswith(("embedding", "blocks.", "norm")) for name, _ in network.named_parameters())


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_many_logits_are_made_in_parts_and_loss_and_gradients_are_the_same_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, activation_checkpointing: bool
) -> None:
    targets = IDS.roll(-1, 1)
    targets[0, :5] = IGNORE
    n = int((targets != IGNORE).sum())

    def outcome() -> tuple[Tensor, dict[str, Tensor]]:
        network = model(activation_checkpointing=activation_checkpointing).train()
        loss = network.loss(IDS, targets, n)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    whole = outcome()
    torch.testing.assert_close(whole[0], next_token_loss(model()(IDS), targets, n).detach())
    monkeypatch.setattr(loss_module, "ROWS", 7)
    with mock.patch("torch.mm", wraps=torch.mm) as products:
        in_parts = outcome()
    assert products.call_count == 2 * 5, "32 rows, 7 at a time: their logits and their gradients"
    assert all(call.args[0].shape[0] <= 7 for call in products.call_args_list)
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-7)
