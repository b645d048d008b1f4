"""Perplexity."""

import math

import pytest

from tests import support
from worker.engine.metrics.perplexity import MOST_NATS, mean_loss, perplexity


def test_perplexity_of_uniform_logits_is_the_vocabulary():
    """A model that knows nothing has the vocabulary's size as its perplexity, whatever the batch."""
    model = support.random_model("llama", gain=0.0)
    rows = [[2, 3, 4], list(range(2, 40)), [5, 6]]
    assert perplexity(model, rows) == pytest.approx(support.VOCABULARY, rel=1e-5)


def test_a_ruined_model_has_a_finite_perplexity():
    """So an epoch that went too far is over its budget, and no error that ends the job."""
    model, rows = support.random_model("llama"), [[1, 2, 3]]
    model.lm_head.weight.data.mul_(1e6)
    assert 1e300 < perplexity(model, rows) < math.inf
    model.lm_head.weight.data.fill_(math.nan)
    assert mean_loss(model, rows) == MOST_NATS
    assert 1e300 < perplexity(model, rows) < math.inf
