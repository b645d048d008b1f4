"""Perplexity."""

import pytest

from tests import support
from worker.engine.metrics.perplexity import perplexity


def test_perplexity_of_uniform_logits_is_the_vocabulary():
    """A model that knows nothing has the vocabulary's size as its perplexity, whatever the batch."""
    model = support.random_model("llama", gain=0.0)
    rows = [[2, 3, 4], list(range(2, 40)), [5, 6]]
    assert perplexity(model, rows) == pytest.approx(support.VOCABULARY, rel=1e-5)
