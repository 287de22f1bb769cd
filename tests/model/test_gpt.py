"""The model: causal, of Llama's kind, and the same with recomputation (promise 4)."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from niels_gpt import loss as loss_module
from niels_gpt.config import ModelCfg
from niels_gpt.loss import IGNORE, next_token_loss
from niels_gpt.model import attention, replay
from niels_gpt.model.gpt import GPT

CFG = ModelCfg(V=300, T=16, C=32, L=3, H=4, d_ff=64, tie_embeddings=True)
IDS = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))


def model(dropout: float = 0.0, *, activation_checkpointing: bool = False) -> GPT:
    torch.manual_seed(1)
    return GPT(CFG.model_copy(update={"dropout": dropout}), activation_checkpointing=activation_checkpointing)


def learn(network: GPT, targets: Tensor = IDS, n: int = IDS.numel()) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients of one training pass with a fixed dropout."""
    torch.manual_seed(2)
    loss = network.train().loss(IDS, targets, n)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


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
    if replayed:
        monkeypatch.setattr(GPT, "device", property(lambda self: torch.device("mps")))
    expected, stream = gradients(activation_checkpointing=False)
    recomputed, stream_after = gradients(activation_checkpointing=True)
    exact = all(torch.equal(expected[name], recomputed[name]) for name in expected)
    assert exact is replayed
    if replayed:
        assert torch.equal(stream, stream_after), "the live stream must go on as without recomputation"


def test_dropout_is_at_work_in_training_and_rests_in_evaluation() -> None:
    assert not torch.equal(learn(model(0.3))[0], learn(model(0.0))[0])
    assert torch.equal(model(0.3).eval()(IDS), model(0.0).eval()(IDS))


def test_a_trace_gives_each_blocks_attention() -> None:
    trace: list[Tensor] = []
    model()(IDS, trace)
    assert [tuple(probabilities.shape) for probabilities in trace] == [(2, CFG.H, 16, 16)] * CFG.L
    for probabilities in trace:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, CFG.H, 16))
        assert (probabilities.triu(1) == 0).all()


def test_no_position_sees_what_comes_after_it_and_positions_are_told_apart() -> None:
    network = model().eval()
    changed = IDS.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % CFG.V
    before, after = network(IDS), network(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:])
    swapped = IDS[:1].clone()
    swapped[0, [2, 3]] = swapped[0, [3, 2]]
    assert not torch.allclose(network(IDS[:1])[0, -1], network(swapped)[0, -1])


def test_a_new_model_knows_nothing() -> None:
    loss = next_token_loss(model()(IDS), IDS.roll(1, -1), IDS.numel())
    assert abs(loss.item() - torch.tensor(300.0).log().item()) < 0.3


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_many_logits_are_made_in_parts_and_loss_and_gradients_are_the_same_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, activation_checkpointing: bool
) -> None:
    targets = IDS.roll(-1, 1)
    targets[0, :5] = IGNORE
    n = int((targets != IGNORE).sum())
    whole = learn(model(activation_checkpointing=activation_checkpointing), targets, n)
    torch.testing.assert_close(whole[0], next_token_loss(model()(IDS), targets, n).detach())
    monkeypatch.setattr(loss_module, "ROWS", 7)
    with mock.patch("torch.mm", wraps=torch.mm) as products:
        in_parts = learn(model(activation_checkpointing=activation_checkpointing), targets, n)
    assert products.call_count == 2 * 5, "32 rows, 7 at a time: their logits and their gradients"
    assert all(call.args[0].shape[0] <= 7 for call in products.call_args_list)
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-7)


# Segments: what is packed into a sequence has the loss that it has alone.

LONG = CFG.model_copy(update={"T": 600, "tie_embeddings": False})
LENGTHS = {16: [5, 1, 7, 3], 600: [40, 220, 3, 250, 87]}


def pack(T: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return items of random ids, the sequence of them all, (1, T), and its segments."""
    generator = torch.Generator().manual_seed(3)
    items = [torch.randint(0, CFG.V, (1, length), generator=generator) for length in LENGTHS[T]]
    numbers = torch.repeat_interleave(torch.arange(len(items)), torch.tensor(LENGTHS[T]))
    return items, torch.cat(items, 1), numbers[None]


def targets_of(item: Tensor) -> Tensor:
    return torch.cat([item[:, 1:], torch.full((1, 1), IGNORE)], 1)


@pytest.mark.parametrize("T", [16, 600])
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("cpu", {}),
        ("cpu", {"activation_checkpointing": True}),
        pytest.param("cpu", {"compiled": True}, marks=pytest.mark.slow),
        ("none", {}),
        ("none", {"activation_checkpointing": True}),
    ],
    ids=["ours", "ours, recomputed", "compiled", "PyTorch's", "PyTorch's, recomputed"],
)
def test_a_sequence_of_segments_has_the_loss_and_the_gradients_that_they_have_alone(
    monkeypatch: pytest.MonkeyPatch, path: str, options: dict[str, bool], T: int
) -> None:
    network = GPT(LONG, **options)
    torch.manual_seed(1)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # so that it matters what a position sees
    items, row, segments = pack(T)
    targets = torch.cat([targets_of(item) for item in items], 1)
    n = int((targets != IGNORE).sum())
    alone = torch.stack([network.eval().loss(item, targets_of(item), n) for item in items]).sum()
    assert abs(network.loss(row, targets, n) - alone) > 0.01, "it makes no difference to see the others"
    monkeypatch.setattr(attention, "DEVICE", path)
    packed = network.train().loss(row, targets, n, segments)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    weights = list(network.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(packed, weights), torch.autograd.grad(alone, weights), rtol=1e-4, atol=1e-5
    )


def test_a_trace_shows_no_attention_to_another_segment() -> None:
    _, row, segments = pack(16)
    trace: list[Tensor] = []
    traced = model()(row, trace, segments)
    torch.testing.assert_close(traced, model()(row, segments=segments), rtol=1e-5, atol=1e-6)
    for probabilities in trace:
        assert (probabilities[:, :, segments[0][:, None] != segments[0]] == 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, CFG.H, 16))


def test_shared_heads_of_keys_and_values_compute_what_repeated_ones_do() -> None:
    full, grouped = model(), GPT(CFG.model_copy(update={"H_kv": 2}))
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            assert weight.shape == (16, 32), "two heads of 8 rows each"
            weights[name] = weight.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    assert torch.equal(grouped(IDS), full(IDS))
    traces: list[list[Tensor]] = [[], []]
    for network, trace in zip((grouped, full), traces, strict=True):
        network(IDS, trace)
    assert all(map(torch.equal, *traces))
