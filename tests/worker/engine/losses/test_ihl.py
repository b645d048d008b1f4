"""The inverted hinge loss: the closed form of the paper, and numbers by hand."""

import pytest
import torch

from worker.engine import inverted_hinge_loss


def closed_form_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cha et al., Appendix A: the gradient of IHL (margin 1) on the logits, token by token."""
    grad = torch.zeros_like(logits)
    targets = labels[:, 1:]
    count = (targets != -100).sum()
    probabilities = torch.softmax(logits, -1)
    for b in range(logits.shape[0]):
        for t in range(logits.shape[1] - 1):
            target = int(targets[b, t])
            if target == -100:
                continue
            p = probabilities[b, t]
            others = p.clone()
            others[target] = -1
            runner_up = int(others.argmax())
            p_t, p_s = p[target], p[runner_up]
            row = p * (p_s - p_t)
            row[target] = p_t * (1 - p_t + p_s)
            row[runner_up] = -p_s * (1 - p_s + p_t)
            grad[b, t] = row / count
    return grad


@pytest.mark.parametrize("seed", range(5))
def test_gradient_is_the_papers_closed_form(seed):
    """Autograd through IHL equals Appendix A on random logits with padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[1, 4:] = -100
    inverted_hinge_loss(logits, labels).backward()
    torch.testing.assert_close(logits.grad, closed_form_gradient(logits.detach(), labels), atol=1e-12, rtol=1e-9)


def test_value_by_hand():
    """p = (0.7, 0.2, 0.1), label 0: 1 + 0.7 - 0.2; label 1: 1 + 0.2 - 0.7."""
    row = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    logits = torch.stack([row, row, row])[None]
    assert inverted_hinge_loss(logits, torch.tensor([[2, 0, 0]])).item() == pytest.approx(1.5)
    assert inverted_hinge_loss(logits, torch.tensor([[2, 1, 1]])).item() == pytest.approx(0.5)
    assert inverted_hinge_loss(logits, torch.tensor([[2, 0, 1]])).item() == pytest.approx(1.0)


def test_margin_below_one_stops():
    """With margin 0.3 a token that is 0.5 behind the runner-up costs nothing and pushes nothing."""
    logits = torch.tensor([0.7, 0.2, 0.1]).log().repeat(1, 2, 1).requires_grad_()
    loss = inverted_hinge_loss(logits, torch.tensor([[0, 1]]), margin=0.3)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
