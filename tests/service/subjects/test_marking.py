"""What an approver looks at first in a text."""

import pytest

from service.subjects.marking import excerpt, marked_parts

TEXT = "Jane  Doe (JANE@example.org) answers to +44 20 7946 0958, or 020 7946 0958; Janet Doerr to 555-0100."


@pytest.mark.parametrize(
    ("subject", "parts"),
    [
        ({"names": ["jane doe"]}, ["Jane  Doe"]),
        ({"names": ["Jane D"]}, []),
        ({"identities": [{"type": "email", "value": "jane@Example.org"}]}, ["JANE@example.org"]),
        ({"identities": [{"type": "phone", "value": "+442079460958"}]}, ["+44 20 7946 0958", "020 7946 0958"]),
        ({"identities": [{"type": "phone", "value": "0100"}]}, []),
        ({"identities": [{"type": "email", "format": "sha256", "value": "ab" * 32}]}, []),
        ({}, []),
    ],
)
def test_parts_are_as_they_are_written(subject, parts):
    """Names by whole words, numbers by their last digits; what was hashed cannot be seen."""
    assert marked_parts(TEXT, subject) == parts


def test_an_excerpt_shows_the_place_that_names_the_person():
    """The beginning of a text, unless the person comes later only."""
    early, late = f"Jane Doe {'x ' * 400}", f"{'x ' * 400}Jane Doe and more"
    assert excerpt(early, {"names": ["Jane Doe"]}) == {"text": early[:300], "marked": ["Jane Doe"]}
    shown = excerpt(late, {"names": ["Jane Doe"]})
    assert shown["text"].startswith("… ")
    assert "Jane Doe and more" in shown["text"]
    assert shown["marked"] == ["Jane Doe"]
    assert excerpt(late, {})["text"] == late[:300]
