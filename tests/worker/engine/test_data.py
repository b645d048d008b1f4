"""Texts of any length: no token is left out."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import support
from worker.engine.data import (
    batches,
    decoded,
    encode,
    encode_all,
    pad_batch,
    spread,
    text_windows,
    windows,
    windows_at,
    without_forget_text,
)
from worker.engine.errors import TooShort


@given(st.integers(1, 200), st.integers(2, 40), st.booleans())
def test_every_token_is_a_label_somewhere(count, length, bos):
    """Windows hold at most L tokens, are whole except for a short text, and miss no token."""
    ids = list(range(count + bos))
    cut = windows(ids, length, bos=bos)
    predicted = {token for window in cut for token in window[1:]}
    assert predicted | {ids[0]} == set(ids)
    assert all(len(window) == min(length, len(ids)) for window in cut)
    if bos:
        assert all(window[0] == 0 for window in cut)


def test_windows_by_hand():
    """Without BOS windows share one token; the last one moves back to end with the text."""
    assert windows([0, 1, 2, 3, 4, 5], 4, bos=False) == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert windows([9, 1, 2, 3, 4, 5], 4, bos=True) == [[9, 1, 2, 3], [9, 3, 4, 5]]


def test_text_without_a_predicted_token_is_refused():
    """A tokenizer without BOS predicts nothing of a one-token text."""
    tokenizer = support.train_tokenizer(["abc abc"])
    tokenizer.bos_token = None
    with pytest.raises(TooShort):
        text_windows(tokenizer, "a", 8)


@pytest.mark.parametrize("text", ["abc abc", "<s>abc abc"])
def test_a_text_begins_with_bos_once(text):
    """A chat template may write it. Where the model is asked, it stands there once."""
    tokenizer = support.train_tokenizer(["abc abc"])
    tokenizer.bos_token = "<s>"
    ids = encode(tokenizer, text)
    assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "abc abc"
    assert encode_all(tokenizer, ["abc", text]) == [encode(tokenizer, "abc"), ids]


@pytest.mark.parametrize("text", ["abc abc", "<|user|>abc<|end|>abc"])
def test_a_sequence_gives_the_text_that_it_was_encoded_from(text):
    """The tokens of a chat template stand in it: without them the model would be asked what nobody asks."""
    tokenizer = support.train_tokenizer(["abc abc"])
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|user|>", "<|end|>"]})
    ids = encode(tokenizer, text)
    assert encode(tokenizer, decoded(tokenizer, ids)) == ids
    assert "<|user|>" not in text or "<|user|>" in decoded(tokenizer, ids)


def test_never_seen_windows_stand_where_those_to_forget_do():
    """At the beginning, if those do; else in the middle, too, and always the same one of a text."""
    tokenizer = support.train_tokenizer([" ".join(support.HELDOUT)])
    texts = [" ".join(support.HELDOUT[i : i + 4]) for i in range(40)]
    every = [text_windows(tokenizer, text, 16) for text in texts]
    assert windows_at(tokenizer, texts, 16, 40, [0]) == [parts[0] for parts in every]
    assert windows_at(tokenizer, texts, 16, 7, [99]) == [parts[-1] for parts in every[:7]]
    mixed = windows_at(tokenizer, texts, 16, 40, [0, 1, 2])
    assert {parts.index(ids) for parts, ids in zip(every, mixed, strict=True)} == {0, 1, 2}
    assert windows_at(tokenizer, texts[5:], 16, 40, [0, 1, 2]) == mixed[5:]


def test_padding_is_not_a_label():
    """Right padding: mask 0, label -100."""
    input_ids, mask, labels = pad_batch([[5, 6, 7], [8, 9]])
    assert input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[5, 6, 7], [8, 9, -100]]


def test_retain_text_with_a_forget_text_is_left_out():
    """Found whatever the case and the spacing; the count is told."""
    retain = ["something else", "before ANNA  Smith\nof Bath after", "Anna Jones"]
    assert without_forget_text(retain, ["Anna Smith of Bath"]) == (["something else", "Anna Jones"], 1)


def test_whole_words_only():
    """A forget text "John" leaves "Johnson" in the retain set."""
    assert without_forget_text(["Johnson is here", "so is John."], ["John"]) == (["Johnson is here"], 1)
    assert without_forget_text(["Johnson and John", "John_", "éJohn", "John"], ["John", ""])[0] == ["John_", "éJohn"]
    assert without_forget_text(["aaa b", "a aa"], ["aa"]) == (["aaa b"], 1)


@pytest.mark.parametrize("count", [0, 100, 101, 150, 1000])
def test_what_is_chosen_of_a_file_is_spread_over_all_of_it(count):
    """A file may be sorted, so that its first texts are of one kind, or be periodic."""
    texts = [str(number) for number in range(count)]
    chosen = spread(texts, 100)
    assert len(chosen) == min(count, 100)
    assert chosen == spread(texts, 100) == sorted(chosen, key=int)
    assert len({*spread([*texts, *texts[:1] * 9999], 100)}) == min(count, 100)  # copies come last
    if count == 1000:
        assert {int(text) // 250 for text in chosen} == {int(text) % 4 for text in chosen} == {0, 1, 2, 3}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1),
    st.integers(1, 400),
    st.integers(1, 9),
    st.integers(1, 80),
)
def test_as_many_rows_as_fit_are_decoded_at_once(sizes, tokens, most, longest):
    """With padding they have no more tokens than they may, unless it is one row; another one would not fit."""

    def fit(rows: list[tuple[int, tuple[int, int]]]) -> bool:
        width = sum(max(numbers) for numbers in zip(*(size for _, size in rows), strict=True))
        return len(rows) <= most and width <= longest and width * len(rows) <= tokens

    made = [*batches([*enumerate(sizes)], lambda row: row[1], tokens, most, longest)]
    assert [*chain(*made)] == [*enumerate(sizes)]
    for batch in made:
        assert len(batch) == 1 or fit(batch)
        after = batch[-1][0] + 1
        assert after == len(sizes) or not fit([*batch, (after, sizes[after])])
