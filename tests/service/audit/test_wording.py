"""No word that claims too much."""

import pytest

from service.audit.wording import FORBIDDEN, problem_in


@pytest.mark.parametrize("word", FORBIDDEN)
def test_no_word_that_claims_too_much(word):
    """In any case, broken over lines, in a key or deep in a list."""
    shouted = word.upper().replace(" ", "\n ")
    for value in (shouted, {shouted: 1}, [{"a": [f"it is {shouted} now"]}]):
        assert word in problem_in(value)
    assert problem_in({"a": ["PASS", 1, None]}) is None
