"""Losses: the closed form of the paper, numbers by hand, and what every member of the dict keeps to."""

from functools import partial

import pytest
import torch

from tests import support
from worker.engine import head, inverted_hinge_loss
from worker.engine.head import Head, hidden_states
from worker.engine.losses import LOSSES
from worker.engine.losses.ascent import cross_entropy, cross_entropy_rows
from worker.engine.losses.rows import loss_mean, loss_sum


def plain_ihl(logits: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Eq. 2 read literally, gradient by autograd; a sum over tokens."""
    targets = labels[:, 1:].reshape(-1)
    counted = targets != -100
    p = torch.softmax(logits[:, :-1].reshape(-1, logits.shape[-1])[counted], -1)
    targets = targets[counted]
    target = p.gather(-1, targets[:, None]).squeeze(-1)
    others = p.masked_fill(torch.nn.functional.one_hot(targets, p.shape[-1]).bool(), -1)
    return torch.clamp(margin + target - others.amax(-1), min=0).sum()


def plain_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's own cross-entropy, a sum over tokens."""
    rows, targets = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(rows, targets, reduction="sum")


PLAIN = {
    "ihl": plain_ihl,
    "gd": lambda logits, labels, margin=1.0: -plain_ce(logits, labels),
    "ga": lambda logits, labels, margin=1.0: -plain_ce(logits, labels),
}


@pytest.mark.parametrize("margin", [1.0, 0.2])
@pytest.mark.parametrize("name", LOSSES)
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
    (found,), (wanted,) = torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", support.FAMILIES)
def test_the_head_apart_gives_the_models_logits(name):
    """Body, then head: the same logits, soft-capping included."""
    model = support.random_model(name)
    input_ids = torch.randint(2, support.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=mask).logits
        found = Head(model)(hidden_states(model, input_ids, mask).flatten(0, 1))
    torch.testing.assert_close(found.view_as(expected), expected, atol=1e-6, rtol=1e-6)
    if name == "gemma2":
        assert expected.abs().max() < 5  # its cap


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("loss", ["ihl", "ce"])
def test_chunks_of_the_head_equal_the_whole(name, loss, monkeypatch):
    """Few rows at a time: the value and every weight's gradient of the plain loss on all logits."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * support.VOCABULARY)
    model = support.random_model(name, gain=2.0)
    model.get_output_embeddings().weight.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "embed" not in n and "wte" not in n}
    input_ids = torch.randint(2, support.VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    labels[1, 5:] = -100
    mask = (labels != -100).long()
    rule, plain = {
        "ihl": (partial(LOSSES["ihl"].rows, margin=0.9), partial(plain_ihl, margin=0.9)),
        "ce": (cross_entropy_rows, plain_ce),
    }[loss]
    value = loss_sum(Head(model), hidden_states(model, input_ids, mask), labels, rule)
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    expected = plain(model(input_ids=input_ids, attention_mask=mask).logits, labels)
    wanted = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for name_, a, b in zip(trained, found, wanted, strict=True):
        assert (a is None) == (b is None), name_
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_chunk_is_larger_than_its_bound():
    """A head of 262,144 rows is given 128 tokens at a time, and never all of them."""
    calls = []

    class Wide(Head):
        def __init__(self) -> None:
            self._model = type("Model", (), {"config": type("Config", (), {"vocab_size": 262_144})})

        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            calls.append(hidden.shape[0])
            return hidden.repeat(1, 4)

    hidden = torch.randn(1, 200, 4, requires_grad=True)
    loss_sum(Wide(), hidden, torch.zeros(1, 200, dtype=torch.long), cross_entropy_rows).backward()
    assert calls == [128, 71]
    assert hidden.grad is not None
    assert cross_entropy(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long)).item() == pytest.approx(1.386, 1e-3)


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


def test_no_label_is_zero():
    """A batch with nothing to predict gives 0, not NaN."""
    assert inverted_hinge_loss(torch.randn(1, 3, 5), torch.full((1, 3), -100)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
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


@pytest.mark.parametrize("name", LOSSES)
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
