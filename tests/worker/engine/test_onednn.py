"""Products through oneDNN are torch's own products, to rounding, and leave a model as it was."""

import pytest
import torch

from tests import support
from worker.engine import onednn


def random(*shape: int) -> torch.Tensor:
    """Normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("block", [2**24, 40])
@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize(("d", "k"), [(7, 5), (5, 23), (64, 3)])
def test_product(monkeypatch, d, k, block, available):
    """Any layout, with and without bias, in one piece and in blocks of rows or columns."""
    monkeypatch.setattr(onednn, "BLOCK", block)
    monkeypatch.setattr(onednn, "AVAILABLE", available and onednn.AVAILABLE)
    wide = random(4, 6, 2 * k)
    for x in (random(6, k), random(4, 6, k), wide[..., :k], random(k, 6).T):
        for weight in (random(d, k), random(k, d).T, random(d, 2 * k)[:, ::2]):
            for bias in (None, random(d)):
                expected = torch.nn.functional.linear(
                    x.double(), weight.double(), None if bias is None else bias.double()
                )
                torch.testing.assert_close(onednn.linear(x, weight, bias).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [2**24, 40])
def test_a_narrow_weight_is_widened_where_it_is_used(monkeypatch, dtype, block):
    """In one piece and in blocks."""
    monkeypatch.setattr(onednn, "BLOCK", block)
    x, bias = random(4, 6, 23), random(31).to(dtype)
    for weight in (random(31, 23).to(dtype), random(23, 31).to(dtype).T):
        expected = torch.nn.functional.linear(x, weight.float(), bias.float())
        torch.testing.assert_close(onednn.linear(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


def test_a_model_computes_and_differentiates_as_before(family):
    """Logits and the gradient of the embeddings; a weight that is trained keeps its gradient, too."""
    model = support.random_model(family)
    input_ids = torch.randint(2, support.VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [model.get_input_embeddings().weight, next(p for p in model.parameters() if p.ndim == 2)]
    for parameter in trained:
        parameter.requires_grad_(True)

    def run() -> tuple[torch.Tensor, ...]:
        logits = model(input_ids=input_ids, use_cache=False).logits
        return logits.detach(), *torch.autograd.grad(logits.logsumexp(-1).sum(), trained)

    expected = run()
    with onednn.fast_linear_layers(model):
        actual = run()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
    assert not [m for m in model.modules() if "forward" in vars(m)]
