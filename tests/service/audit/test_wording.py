"""No word that claims too much."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit.wording import E_MAIL, FORBIDDEN, problem_in, texts


@pytest.mark.parametrize("word", FORBIDDEN)
def test_no_word_that_claims_too_much(word):
    """In any case, broken over lines, in a key or deep in a list."""
    shouted = word.upper().replace(" ", "\n ")
    for value in (shouted, {shouted: 1}, [{"a": [f"it is {shouted} now"]}]):
        assert word in problem_in(value)
    assert problem_in({"a": ["PASS", 1, None]}) is None


@given(st.text(alphabet="a@. \n\u00a0é", max_size=12))
def test_an_address_is_what_it_always_was(text):
    """The verdict is the one of the expression that verifiers had before, which was quadratic."""
    assert bool(E_MAIL.search(text)) == bool(re.search(r"[^\s@]+@[^\s@]+\.[^\s@]+", text))


LONG = ("'a' * n", "'a@' * n", "'a@a' * n", "'a@' + '.' * n", "'@' + 'a.' * n", "'a.' * n + '@'")


@pytest.mark.parametrize("text", LONG)
def test_a_long_text_is_looked_at_once(text):
    """Two million characters take a moment; an expression that reads them again and again would take hours."""
    code = f"from service.audit.wording import problem_in; n = 2_000_000; problem_in({{'name': {text}}})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_deep_value_is_read_to_its_end():
    """No depth is too much, and the order is the one in which a reader meets them."""
    deep: object = ["last"]
    for _ in range(100_000):
        deep = [deep]
    read = texts({"first": [{"second": "third"}, "fourth"], "fifth": deep})
    assert list(read) == ["first", "second", "third", "fourth", "fifth", "last"]
