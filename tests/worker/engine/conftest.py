"""Fixtures of the engine's tests."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import support
from worker.engine.attacks.subject import Subject, cut_alike
from worker.engine.data import encode


@pytest.fixture(scope="session")
def memorised(memorised_folder):
    """(model, tokenizer) that knows `support.KNOWN` by heart. Tests leave it as it is."""
    folder = memorised_folder / "model"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


ALIKE = ("mistral", "phi", "qwen2")  # others have each of their parts


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in sorted(support.FAMILIES)]
)
def family(request):
    """Each model family in turn."""
    return request.param


@pytest.fixture(scope="session")
def of(memorised):
    """A subject over some texts, beside unseen ones."""
    model, tokenizer = memorised

    def subject(texts, unseen=support.UNSEEN) -> Subject:
        forget, others, retain = ([encode(tokenizer, t) for t in some] for some in (texts, unseen, support.RETAIN))
        return Subject(model, tokenizer, forget, cut_alike(others, forget), retain)

    return subject
