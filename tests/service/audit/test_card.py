"""The model card shows no means of few."""

from service.audit.card import model_card
from tests.issuer import REPORT, contributors, findings


def test_a_card_does_not_tell_means_of_few():
    """The model card is as public as the certificate."""
    assert "0.95" not in model_card("m", 1, 0, findings(REPORT), contributors(2))
    assert "0.950000" in model_card("m", 1, 0, findings(REPORT), contributors(3))


def test_a_card_says_what_all_versions_cost_together():
    """Perplexity of version 0 and the budget since then stand beside those of this version."""
    assert "| held-out perplexity, since version 0 | 9.00 | 9.18 | at most x 1.32 |\n\n" in model_card(
        "m", 1, 0, findings(REPORT), contributors(3)
    )
