"""Likeness tells languages and sorts of text apart, and nothing else."""

import pytest

from service.domain.reference_texts import UNLIKE, unlike_warning
from service.subjects.kinds import likeness
from tests import support
from worker.demo.people import prose

PEOPLE = support.people(120, seed=5)
PROSE = prose(240, 3)
GERMAN = [f"Der Hund {i} läuft durch den Wald und sieht {i * 7} Bäume, die im Winde stehen." for i in range(60)]
CODE = [f"def value_{i}(x: int) -> int:\n    return x * {i} + self.offset[{i * 3}]\n" for i in range(60)]


@pytest.mark.parametrize(
    ("retain", "heldout"),
    [(PEOPLE[:60], PEOPLE[60:]), (PROSE[:120], PROSE[120:]), ([*PEOPLE[:40], *PROSE[:40]], PEOPLE[60:])],
    ids=["people", "prose", "people among prose"],
)
def test_texts_of_one_kind_are_alike(retain, heldout):
    """About as near as retain texts among themselves, or, where these are of several kinds, not far."""
    value = likeness(retain, heldout)
    assert value > 2 * UNLIKE
    assert unlike_warning(value) is None


@pytest.mark.parametrize("heldout", [GERMAN, CODE, PEOPLE], ids=["another language", "code", "people"])
def test_texts_of_another_kind_are_named(heldout):
    """Beside English prose."""
    value = likeness(PROSE, heldout)
    assert value < UNLIKE
    assert "another language or kind" in unlike_warning(value)


def test_length_and_repetition_are_no_kind():
    """Long retain texts beside short held-out texts of the same prose, and retain texts that stand there four times."""
    joined = [" ".join(PROSE[i : i + 4]) for i in range(0, 120, 3)]
    assert likeness(joined, [text[:200] for text in PROSE[120:]]) > UNLIKE
    assert likeness(PROSE[:100] * 4, PROSE[120:]) > 2 * UNLIKE


def test_too_few_texts_show_no_kind():
    """Nothing is claimed then."""
    assert likeness(PROSE[:19], PEOPLE) is None
    assert unlike_warning(None) is None
    assert likeness(["."] * 30, PEOPLE) is None
