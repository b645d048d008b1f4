"""Texts to forget after other words than their own."""

import copy

import pytest

from tests import support
from worker.engine.data import encode
from worker.engine.other_prompts import EACH, MOST, other_prompts


def changed(tokenizer, texts, length=96, seed=0):
    """The ends of these texts after other prompts: the prompt, the end, and how many tokens there are."""
    before = [encode(tokenizer, text) for text in support.RETAIN[:3]]
    made = other_prompts(tokenizer, [encode(tokenizer, text) for text in texts], before, length, seed)
    assert all(1 <= one.start < len(one.input_ids) <= length for one in made)

    def decoded(ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return [(decoded(one.input_ids[: one.start]), decoded(one.input_ids[one.start :])) for one in made]


def test_the_ends_of_texts_stand_after_beginnings_that_are_changed_in_every_way(memorised):
    """The end is the text's own, and no beginning is."""
    ways = set()
    text = support.KNOWN[0]
    pairs = (
        changed(memorised[1], [text]) + changed(memorised[1], [text], seed=1) + changed(memorised[1], [text], seed=2)
    )
    assert len(pairs) == 3 * EACH
    for prompt, end in pairs:
        assert text.endswith(end)
        beginning = text.removesuffix(end)
        assert prompt != beginning
        if prompt == beginning.lower():
            ways.add("lower")
        elif beginning.endswith(prompt):
            ways.add("shorter")
        elif prompt.endswith(beginning):
            ways.add("longer")
            assert any(prompt.removesuffix(beginning).strip() in retain for retain in support.RETAIN[:3])
        else:
            ways.add("mistyped")
            assert sorted(prompt) == sorted(beginning)
    assert ways == {"lower", "shorter", "longer", "mistyped"}


def test_of_a_long_beginning_the_last_words_stay(memorised):
    """What stands before the end goes on in it."""
    text = support.KNOWN[0]
    whole = changed(memorised[1], [text])
    pairs = changed(memorised[1], [text], length=len(encode(memorised[1], text)) // 2)
    assert len(pairs) == EACH
    for (prompt, end), (long_prompt, long_end) in zip(pairs, whole, strict=True):
        assert long_prompt.endswith(prompt)
        assert long_end.startswith(end)
    assert any(len(prompt) < len(long) for (prompt, _), (long, _) in zip(pairs, whole, strict=True))


@pytest.mark.parametrize("bos", [True, False])
def test_texts_that_begin_with_a_space_or_have_one_word(memorised, bos):
    """Without BOS, too, something stands before each end. One word has none."""
    tokenizer = copy.deepcopy(memorised[1])
    if not bos:
        tokenizer.bos_token = None
    assert changed(tokenizer, [" Two Words"])
    assert changed(tokenizer, ["alone ", ""]) == []


def test_of_many_texts_some_are_drawn(memorised):
    """Any of them, the last ones, too."""
    pairs = changed(memorised[1], [f"Number One lives at {i}" for i in range(MOST + 50)])
    assert len(pairs) == MOST
    assert any(end.endswith(f" {i}") for _, end in pairs for i in range(MOST, MOST + 50))
    assert len(changed(memorised[1], support.KNOWN[:3], length=65_536 // 2)) == 2
