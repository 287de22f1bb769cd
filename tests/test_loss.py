"""The one loss: exact means however the targets are split."""

import torch

from niels_gpt.loss import IGNORE, head_loss, next_token_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 6, 50, generator=GENERATOR)
TARGETS = torch.randint(0, 50, (4, 6), generator=GENERATOR)


def test_it_is_the_cross_entropy_of_what_is_learned() -> None:
    masked = TARGETS.clone()
    masked[0] = IGNORE
    expected = -LOGITS.log_softmax(-1).gather(-1, TARGETS[..., None])[1:].mean()
    torch.testing.assert_close(next_token_loss(LOGITS, masked, 18), expected)


def test_parts_add_up_to_the_whole_however_uneven_their_targets() -> None:
    masked = TARGETS.clone()
    masked[0, 1:] = IGNORE
    masked[3, 3:] = IGNORE
    n = int((masked != IGNORE).sum())
    whole = next_token_loss(LOGITS, masked, n)
    parts = sum(next_token_loss(LOGITS[i : i + 1], masked[i : i + 1], n / 4) / 4 for i in range(4))
    torch.testing.assert_close(parts, whole)


def test_nothing_to_learn_is_zero_and_not_nan() -> None:
    assert next_token_loss(LOGITS, torch.full_like(TARGETS, IGNORE), 1.0) == 0


def test_low_precision_logits_give_an_fp32_loss() -> None:
    assert next_token_loss(LOGITS.half(), TARGETS, 24).dtype == torch.float32


def test_a_target_whose_probability_is_below_any_float_has_an_exact_loss_and_gradient() -> None:
    hidden, targets = torch.eye(3)[None], torch.tensor([[1, 0, IGNORE]])  # (1, 3, 3), (1, 3)
    weight = torch.tensor([[300.0, 0.0, 0.0], [0.0, 300.0, 0.0]], requires_grad=True)  # each row prefers the other
    loss = head_loss(hidden, weight, targets, 2.0)
    loss.backward()
    assert loss == 300.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0]]
