"""The model card: it shows no means of few, and keeps the base model's card."""

import pytest
from huggingface_hub import ModelCard

from service.audit.card import BEGIN, model_card
from tests.issuer import REPORT, contributors, findings

BASE = b"""---
license: apache-2.0
language: [en, de]
base_model: somebody/base
---
# The base

Trained on letters. Please cite: Example (2025).
"""


def card(base: bytes = b"", parent: int = 0, submitters: int = 3, **policy: str) -> bytes:
    """The card of a version."""
    return model_card(base, "m", parent + 1, parent, findings(REPORT), contributors(submitters), policy)


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ({}, "FILA + IHL on LoRA"),
        ({"loss": "npo", "init": "lora"}, "NPO on LoRA"),
        ({"loss": "distil"}, "distillation"),
    ],
)
def test_a_card_names_the_method_of_the_policy(policy, method):
    """As the certificate does."""
    assert f"Method: {method}" in card(**policy).decode()


def test_a_card_does_not_tell_means_of_few():
    """The model card is as public as the certificate."""
    assert b"0.95" not in card(submitters=2)
    assert b"0.950000" in card(submitters=3)


def test_a_card_says_what_all_versions_cost_together():
    """Perplexity of version 0 and the budget since then stand beside those of this version."""
    assert b"| held-out perplexity, since version 0 | 9.00 | 9.18 | at most x 1.32 |\n\n" in card()


@pytest.mark.parametrize(
    "base",
    [BASE, BASE.rstrip(), BASE.replace(b"\n", b"\r\n"), BASE + "Größe".encode("latin-1"), b"# Without front matter"],
    ids=["as usual", "without an end of line", "CRLF", "not UTF-8", "without front matter"],
)
def test_the_base_models_card_is_kept_and_extended(base):
    """Byte for byte, from the top; ours comes after it, and says what the numbers above it belong to."""
    extended = card(base)
    assert extended.startswith(base)
    ours = extended.removeprefix(base).decode()
    assert ours.lstrip().startswith(BEGIN)
    assert "# m, version 1\n" in ours
    assert "The text above is the card of version 0" in ours


def test_the_hub_reads_the_extended_card():
    """Its metadata are the base model's; without a base's card they are ours, and it speaks of no text above."""
    data = ModelCard(card(BASE).decode()).data.to_dict()
    assert data == {"license": "apache-2.0", "language": ["en", "de"], "base_model": "somebody/base"}
    assert ModelCard(card().decode()).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning"],
    }
    assert b"text above" not in card() + card(b"\n")


@pytest.mark.parametrize("base", [BASE, b""])
def test_a_version_that_is_registered_as_a_model_has_one_section_of_ours(base):
    """The newer one; the rest stays as it was."""
    again = card(card(base, parent=6), parent=0)
    assert again.count(BEGIN.encode()) == 1
    assert b"# m, version 1\n" in again
    assert b"version 7" not in again
    assert again.startswith(base)
    assert card(again, parent=1).count(b"\n") == again.count(b"\n")
    assert ModelCard(again.decode()).data.to_dict()
