"""Every loss against the literal formula of its paper, in float64: the gradient on the logits is autograd's."""

import copy

import pytest
import torch

from tests import support
from tests.worker.engine.adapters import trained_adapter
from worker.engine import Options, unlearn
from worker.engine.data import encode
from worker.engine.losses import LOSSES
from worker.engine.losses.baselines import (
    ALTPO_BETA,
    NPO_BETA,
    SIMNPO_BETA,
    UNDIAL_STRENGTH,
    npo_weights,
    simnpo_weights,
    undial_rows,
    weighted_ascent_rows,
    wga_rows,
)
from worker.engine.losses.distil import distil_rows, divergence_rows, kept_rows
from worker.engine.parent import without_adapter
from worker.engine.step import forget_gradients, retain_gradients

ROWS, VOCABULARY = 7, 11


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with gradient, targets, other logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_(True)
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return logits, targets, torch.randn(ROWS, VOCABULARY, dtype=torch.float64, generator=generator)


def same_gradient(logits: torch.Tensor, literal: torch.Tensor, gradient: torch.Tensor) -> None:
    """Whether a closed form is the gradient of a literal loss."""
    (expected,) = torch.autograd.grad(literal, logits)
    torch.testing.assert_close(gradient, expected)


def at(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's value at its target."""
    return log_p.gather(-1, targets[:, None]).squeeze(-1)


def test_divergence():
    """KL(q || p)."""
    logits, targets, other = drawn()
    losses, gradient = divergence_rows(logits.detach(), targets, other)
    literal = torch.nn.functional.kl_div(
        torch.log_softmax(logits, -1), torch.log_softmax(other, -1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(losses, literal.detach())
    same_gradient(logits, literal.sum(), gradient)


def test_distil():
    """The divergence from the sharpened reference, and the squared difference of the true token's log-likelihood."""
    logits, targets, other = drawn()
    losses, gradient = distil_rows(
        *(logits.detach(), targets, other),
        token_weight=0.7,
        calibration=lambda says: (0.2 * says.log_p, 1 - 0.1 * says.log_p),
    )
    log_p, log_q = (torch.log_softmax(values, -1) for values in (logits, other))
    log_s = torch.log_softmax((1 - 0.1 * at(log_q, targets))[:, None] * other, -1)
    literal = (log_s.exp() * (log_s - log_p)).sum(-1) + 0.7 * at(log_p - 1.2 * log_q, targets) ** 2
    torch.testing.assert_close(losses, literal.detach())
    same_gradient(logits, literal.sum(), gradient)


def test_kept():
    """Six times the divergence from the parent, and the cross-entropy."""
    logits, targets, parent = drawn()
    losses, gradient = kept_rows(logits.detach(), targets, parent, divergence_weight=6.0, retain_weight=0.5)
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(parent, -1)
    literal = 6 * (log_q.exp() * (log_q - log_p)).sum(-1) - 0.5 * at(log_p, targets)
    torch.testing.assert_close(losses, literal.detach())
    same_gradient(logits, literal.sum(), gradient)


def test_wga():
    """p^alpha log p, where p has no gradient."""
    logits, targets, _ = drawn()
    losses, gradient = wga_rows(logits.detach(), targets)
    log_p = at(torch.log_softmax(logits, -1), targets)
    literal = log_p.detach().exp() * log_p
    torch.testing.assert_close(losses, literal.detach())
    same_gradient(logits, literal.sum(), gradient)


def test_undial():
    """The parent's distribution with the true token's logit lowered."""
    logits, targets, parent = drawn()
    _, gradient = undial_rows(logits.detach(), targets, parent)
    lowered = parent - UNDIAL_STRENGTH * torch.nn.functional.one_hot(targets, VOCABULARY)
    literal = -(torch.softmax(lowered, -1) * torch.log_softmax(logits, -1)).sum()
    same_gradient(logits, literal, gradient)


def test_npo_and_simnpo():
    """Two sequences; the weights times the gradient of log p are the gradient of the papers' losses."""
    logits, targets, other = drawn()
    lengths = torch.tensor([3, 4])

    def likelihoods(of):
        return torch.stack([part.sum() for part in at(torch.log_softmax(of, -1), targets).split([3, 4])])

    own, parent = likelihoods(logits), likelihoods(other)
    literals = {
        npo_weights: (2 / NPO_BETA * torch.log1p(torch.exp(NPO_BETA * (own - parent)))).sum(),
        simnpo_weights: (-2 / SIMNPO_BETA * torch.nn.functional.logsigmoid(-SIMNPO_BETA / lengths * own)).sum(),
    }
    for weights, literal in literals.items():
        of_rows = weights(own.detach(), parent, lengths).repeat_interleave(lengths)
        _, gradient = weighted_ascent_rows(logits.detach(), targets, of_rows)
        (expected,) = torch.autograd.grad(literal, logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


@pytest.fixture
def changed(memorised):
    """A model with an adapter that changed it a little, two sequences of different lengths, and two others."""
    model, tokenizer = copy.deepcopy(memorised[0]), memorised[1]
    texts = zip(support.KNOWN[:4], (9, 15, 12, 10), strict=True)
    batch = [encode(tokenizer, text)[:length] for text, length in texts]
    return model, trained_adapter(model, "lora"), batch[:2], batch[2:]


def likelihoods(model, batch):
    """The log-likelihood of each sequence, by the whole model."""
    logits = [model(input_ids=torch.tensor([ids])).logits[0, :-1] for ids in batch]
    pairs = zip(logits, batch, strict=True)
    return torch.stack([at(torch.log_softmax(z, -1), torch.tensor(ids[1:])).sum() for z, ids in pairs])


def literal_loss(name, model, adapter, batch, others):
    """The paper's loss, by autograd on the whole model: a mean over sequences, or over pairs."""
    log_sigmoid = torch.nn.functional.logsigmoid

    def change(sequences):
        with without_adapter(adapter), torch.no_grad():
            parent = likelihoods(model, sequences)
        return likelihoods(model, sequences) - parent

    if name == "npo":
        return (-2 / NPO_BETA * log_sigmoid(-NPO_BETA * change(batch))).mean()
    if name == "altpo":
        return (-2 / ALTPO_BETA * log_sigmoid(ALTPO_BETA * (change(others) - change(batch)))).mean()
    lengths = torch.tensor([len(ids) - 1 for ids in batch])
    return (-2 / SIMNPO_BETA * log_sigmoid(-SIMNPO_BETA / lengths * likelihoods(model, batch))).mean()


@pytest.mark.parametrize("name", ["npo", "simnpo", "altpo"])
def test_the_trainer_takes_the_papers_gradient(changed, name):
    """The gradient of the mean over sequences of different lengths."""
    model, adapter, batch, others = changed
    forget_gradients(model, adapter, batch, others, Options(loss=name, train_dtype="float32"))
    gradients = [parameter.grad.clone() for parameter in adapter.parameters()]
    wanted = torch.autograd.grad(literal_loss(name, model, adapter, batch, others), adapter.parameters())
    for value, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-3)


def test_rmu(changed):
    """Half-way up, text to forget goes to noise of five times the parent's size, and retain text stays."""
    model, adapter, batch, kept = changed
    options, layer = Options(loss="rmu", train_dtype="float32", retain_weight=0.5), model.config.num_hidden_layers // 2

    def states(sequences):
        outputs = [model(input_ids=torch.tensor([ids]), output_hidden_states=True) for ids in sequences]
        return torch.cat([output.hidden_states[layer][0, 1:] for output in outputs])

    with without_adapter(adapter), torch.no_grad():
        parent, parent_kept = states(batch), states(kept)
    direction = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    target = 5 * parent.norm(dim=-1).mean() * direction / direction.norm()
    literal = ((states(batch) - target) ** 2).mean() + 0.5 * 100 * ((states(kept) - parent_kept) ** 2).mean()
    wanted = torch.autograd.grad(literal, adapter.parameters(), allow_unused=True)
    value = forget_gradients(model, adapter, batch, [], options) + retain_gradients(model, adapter, kept, options)
    assert value == pytest.approx(float(literal.detach()), rel=1e-5)
    for parameter, expected in zip(adapter.parameters(), wanted, strict=True):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, torch.zeros_like(parameter) if expected is None else expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["altpo", "rmu"])
def test_training_with_them_forgets(memorised, name):
    """A whole run, on a model that knows the text by heart: MA falls."""
    model, tokenizer = memorised
    options = Options.from_mapping(
        support.POLICY | {"loss": name, "init": "lora", "max_epochs": 15, "own_samples": 16, "attacks": {}}
    )
    result = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options)
    assert result.report["after"]["ma"] < result.report["before"]["ma"] - 0.2


def test_every_loss_says_what_it_needs():
    """A row loss has a third argument if, and only if, something makes it."""
    logits, targets, other = drawn()
    for name, loss in LOSSES.items():
        if loss.rows is None:
            continue
        third = [other] if loss.of_parent else [torch.ones(ROWS)] if loss.weights else []
        losses, gradient = loss.rows(logits.detach(), targets, *third, margin=1.0)
        assert (losses.shape, gradient.shape) == ((ROWS,), (ROWS, VOCABULARY)), name
