"""Fixtures of the engine's tests."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import support


@pytest.fixture(scope="session")
def memorised(memorised_folder):
    """(model, tokenizer) that knows `support.KNOWN` by heart. Tests leave it as it is."""
    folder = memorised_folder / "model"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=sorted(support.FAMILIES))
def family(request):
    """Each model family in turn."""
    return request.param
