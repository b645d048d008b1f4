"""Fixtures of the engine's tests."""

import pytest

from tests import support


@pytest.fixture(scope="session")
def memorised():
    """(model, tokenizer) that knows `support.KNOWN` by heart. Tests leave it as it is."""
    return support.memorised_model(support.KNOWN)


@pytest.fixture(params=sorted(support.FAMILIES))
def family(request):
    """Each model family in turn."""
    return request.param
