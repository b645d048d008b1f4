"""What every loss of the dict keeps to."""

from functools import partial

import pytest
import torch

from tests.worker.engine.losses.plain import plain_ce, plain_ihl, plain_wga
from worker.engine import inverted_hinge_loss
from worker.engine.losses import LOSSES
from worker.engine.losses.rows import loss_mean

PLAIN = {
    "ihl": plain_ihl,
    "gd": lambda logits, labels, margin=1.0: -plain_ce(logits, labels),
    "ga": lambda logits, labels, margin=1.0: -plain_ce(logits, labels),
    "kl": lambda logits, labels, margin=1.0: -plain_ce(logits, labels),
    "wga": plain_wga,
}
BY_THEMSELVES = [name for name, loss in LOSSES.items() if loss.rows and not loss.of_parent and loss.weights is None]


@pytest.mark.parametrize("margin", [1.0, 0.2])
@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_loss_mean_equals_plain_autograd(name, margin):
    """Value and gradient in float64, with padding, and where the target itself leads."""
    torch.manual_seed(2)
    logits = (3 * torch.randn(3, 8, 13, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 13, (3, 8))
    labels[0, 1:] = logits[0, :-1].argmax(-1)
    labels[2, 5:] = -100
    rule = partial(LOSSES[name].rows, margin=margin)
    count = int((labels[:, 1:] != -100).sum())
    value = loss_mean(logits, labels, rule)
    expected = PLAIN[name](logits, labels, margin) / count
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    (actual,), (wanted,) = torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=1e-9)


def test_no_label_is_zero():
    """A batch with nothing to predict gives 0, not NaN."""
    assert inverted_hinge_loss(torch.randn(1, 3, 5), torch.full((1, 3), -100)).item() == 0


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_every_loss_keeps_the_contract(name):
    """A finite scalar with a gradient, blind to the last position's logits and to ignored labels."""
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 9, requires_grad=True)
    labels = torch.randint(0, 9, (2, 6))
    labels[0, 3:] = -100
    loss = loss_mean(logits, labels, LOSSES[name].rows)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert logits.grad.abs().sum() > 0
    assert not logits.grad[:, -1].any()
    assert not logits.grad[0, 2:].any()
    changed = logits.detach().clone()
    changed[0, 2:] = 50.0
    assert loss_mean(changed, labels, LOSSES[name].rows).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_a_step_lowers_the_target(name):
    """One gradient step on any forget loss makes the label less likely."""
    torch.manual_seed(1)
    logits = torch.randn(1, 4, 7, requires_grad=True)
    labels = torch.randint(0, 7, (1, 4))
    loss_mean(logits, labels, LOSSES[name].rows).backward()
    pick = labels[:, 1:, None]
    before = torch.softmax(logits[:, :-1], -1).gather(-1, pick)
    after = torch.softmax((logits - 0.1 * logits.grad)[:, :-1], -1).gather(-1, pick)
    assert (after < before).all()
