"""Every family that the documentation lists is decoded exactly, adapted, and merged."""

from pathlib import Path

import pytest

from service.domain.families import TRIED
from tests.worker.engine.families import FAMILIES, PAGE, try_family

DOCUMENT = Path(__file__).parents[3] / "docs" / "families.md"
KINDS = {"gpt_oss", "jamba", "llama", "mamba", "mixtral", "qwen2_moe"}  # one of each
MARKED = [family if family in KINDS else pytest.param(family, marks=pytest.mark.slow) for family in sorted(FAMILIES)]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")  # of others' code
@pytest.mark.parametrize("family", MARKED)
def test_a_family_is_decoded_adapted_and_merged(family):
    """Exactly, everywhere, and to what base and adapter say; the page says how."""
    tried = try_family(family)
    assert (tried.wrong, tried.unmoved) == (0, 0)
    assert tried.difference < 1e-4 < 1e-3 < tried.moved
    assert tried.widened < 1e-5
    assert tried.served is None or tried.served < 1e-4
    assert tried.copied in (None, 0.0)
    assert tried.row in DOCUMENT.read_text().splitlines()


def test_the_page_lists_these_families():
    """At least fifty."""
    page = DOCUMENT.read_text()
    assert page.startswith(PAGE)
    assert [line.split("`")[1] for line in page[len(PAGE) :].splitlines()] == sorted(FAMILIES)
    assert FAMILIES.keys() == TRIED
    assert len(FAMILIES) >= 50
