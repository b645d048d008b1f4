"""A prompt says a secret for the API exactly where the engine would count it as an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.saying import says
from worker.engine.saying import Texts

SAID = [
    ("张伟住在哪里？", "张伟"),
    ("Who is Ann  Lee?", "Ann Lee"),
    ("Who is ANN-LEE?", "Ann Lee"),
    ("Is Ann-Marie's code X-12 AB?", "x12ab"),
    ("Is it ０７７００ ９００１２３?", "07700 900123"),
    ("joanna, not Anna: anna", "Anna"),
    ("Is it \u0665\u0660\u0661?", "501"),
]
UNSAID = [
    ("What is Joanna's name?", "anna"),
    ("Is it 107700900123?", "07700 900123"),
    ("Annabel", "Ann"),
    ("", "Ann"),
    ("--", "--"),
    ("1፩", "፩"),
]


@pytest.mark.parametrize(
    ("text", "secret", "expected"), [(*pair, True) for pair in SAID] + [(*pair, False) for pair in UNSAID]
)
def test_marks_case_and_width_do_not_matter_and_a_part_of_a_word_is_none(text, secret, expected):
    """Nor is a part of a number; scripts without cases have no words."""
    assert says(text, secret) is Texts([text]).say(secret) is expected


PARTS = st.lists(st.sampled_from([*"aAbß1٢²፩, -_\u0301張ﷺİ"]), max_size=12).map("".join)


@given(PARTS, PARTS)
def test_the_api_and_the_engine_mean_the_same(text, secret):
    """Else a probe is accepted whose prompt answers it, and blocks the others of its job."""
    assert says(text, secret) is Texts([text]).say(secret)
