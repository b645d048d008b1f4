"""How much held-out text is retain text: found whatever its form, and counted once."""

import random

import pytest

from service.domain.reference_texts import overlaps_too_much
from service.subjects.overlap import CHUNK, measure_overlap

WORDS = [f"w{number}ord" for number in range(500)]


def prose(count: int, seed: int) -> list[str]:
    """Distinct texts of forty words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=40)) for _ in range(count)]


def test_texts_of_their_own_do_not_overlap():
    """Neither unlike texts nor texts of one form with other names and numbers in it."""
    assert measure_overlap(prose(50, 1), prose(50, 2)) == {"exact": 0, "near": 0}
    form = "Line {} of a text about boats, bread and {} green bottles on a wall."
    lines = [form.format(number, number * 37 % 101) for number in range(200)]
    assert measure_overlap(lines[:100], lines[100:]) == {"exact": 0, "near": 0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text, "exact"),
        (lambda text: f"  {text.upper()}.\n", "exact"),
        (lambda text: text.replace("o", "\uff4f"), "exact"),
        (lambda text: text.replace(" ", "\u00a0 ", 5), "exact"),
        (lambda text: f"{text} more", "near"),
        (lambda text: text.replace(text.split()[7], "other", 1), "near"),
        (lambda text: "...", None),
    ],
    ids=["the same", "case and punctuation", "another form of a letter", "spaces", "longer", "a word", "another"],
)
def test_a_copy_is_found_in_any_form(change, expected):
    """The same text by its words; a near copy by its five-character pieces."""
    retain = prose(60, 1)
    heldout = [*prose(30, 2), change(retain[17])]
    assert measure_overlap(retain, heldout) == {"exact": 0, "near": 0} | ({expected: 1} if expected else {})


def test_every_heldout_text_counts_once():
    """Many copies among the retain texts, in several chunks, are one; a text twice in the held-out file is two."""
    retain = prose(CHUNK + 200, 1)
    heldout = [retain[3], retain[3], retain[-1], f"{retain[-2]} more", *prose(10, 2)]
    assert measure_overlap([*retain, retain[3], f"{retain[3]} more"], heldout) == {"exact": 3, "near": 1}


def test_the_share_that_is_too_much():
    """A hundredth may overlap, near copies included; of few texts none may."""
    assert not overlaps_too_much({"exact": 1, "near": 1}, 200)
    assert overlaps_too_much({"exact": 1, "near": 2}, 200)
    assert overlaps_too_much({"exact": 0, "near": 1}, 99)
