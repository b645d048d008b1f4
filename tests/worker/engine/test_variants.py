"""Variants of texts to forget: other numbers of the same format, and nothing else."""

import re
import statistics

import pytest
import torch

from tests import support
from worker.engine import variants
from worker.engine.data import encode
from worker.engine.identifiers import NUMBER
from worker.engine.variants import EACH, MOST, Variants, _differs_in, _runs, number_variants


def test_a_variant_differs_in_its_numbers_alone(memorised):
    """Each number has another of the format that unseen numbers show; the same seed gives the same."""
    _, tokenizer = memorised
    forget, unseen = ([encode(tokenizer, text) for text in texts] for texts in (support.KNOWN[:3], support.HELDOUT))
    made = number_variants(tokenizer, forget, unseen, 7)
    variants = made.sequences
    assert made.sources == [0, 1, 2] * EACH
    assert len(variants) == 3 * EACH
    assert made == number_variants(tokenizer, forget, unseen, 7) != number_variants(tokenizer, forget, unseen, 8)
    said = {token: tokenizer.decode([token]) for ids in forget for token in ids[1:]}
    assert made.number_tokens(forget) == {token for token, text in said.items() if re.search(r"\d", text)}
    for ids, text in zip(variants, support.KNOWN[:3] * EACH, strict=True):
        other = tokenizer.decode(ids, skip_special_tokens=True)
        assert len(ids) <= len(encode(tokenizer, text))
        assert NUMBER.findall(other) != NUMBER.findall(text)
        without = [re.sub(r"\s+", " ", re.sub(r"\d", "#", value)) for value in (text, other)]
        assert without[0].startswith(without[1].rstrip(".")[:-3])


def test_a_text_without_a_number_has_no_variant(memorised):
    """And many texts have few, so that their number is bounded."""
    _, tokenizer = memorised
    assert number_variants(tokenizer, [encode(tokenizer, "Nobody wrote this.")], [], 0).sequences == []
    many = [encode(tokenizer, text) for text in support.people(150, seed=12)] * 4
    assert len(number_variants(tokenizer, many, [], 0).sequences) == MOST


def test_a_model_that_knows_a_number_finds_it_likelier_than_its_variants(memorised):
    """By much for a number that it knows; hardly for one that stands in for it, which is as random as the others."""
    model, tokenizer = memorised
    known, unseen = ([encode(tokenizer, text) for text in texts] for texts in (support.KNOWN[:4], support.HELDOUT))
    strange = [number_variants(tokenizer, [ids], unseen, 3).sequences[0] for ids in known]
    of_known, of_strange = (
        [excess for _, _, excess in number_variants(tokenizer, side, unseen, 7).excess(model, side)]
        for side in (known, strange)
    )
    assert of_strange
    assert min(of_known) > 1.0
    assert sum(map(abs, of_strange)) / max(1, len(of_strange)) < min(of_known)


def test_a_variant_is_alike_if_its_digits_alone_differ_token_by_token(memorised):
    """One whose numbers have more or fewer tokens is not: what follows would be compared with other tokens."""
    _, tokenizer = memorised
    forget, unseen = ([encode(tokenizer, text) for text in texts] for texts in (support.KNOWN, support.HELDOUT))
    made = number_variants(tokenizer, forget, unseen, 7)
    assert sum(made.alike) > 0.8 * len(made.alike)
    for ids, source, alike in zip(made.sequences, made.sources, made.alike, strict=True):
        pairs = [pair for pair in zip(ids, forget[source], strict=False) if pair[0] != pair[1]]
        digits = [re.search(r"\d", tokenizer.decode([token])) for pair in pairs for token in pair]
        assert pairs
        assert not alike or (len(ids) == len(forget[source]) and all(digits))


def test_long_texts_have_fewer_variants(memorised, monkeypatch):
    """So that what a reference says of all of them fits in memory."""
    _, tokenizer = memorised
    forget = [encode(tokenizer, text) for text in support.KNOWN[:3]]
    monkeypatch.setattr(variants, "MOST_TOKENS", 7 * max(map(len, forget)))
    assert number_variants(tokenizer, forget, [], 7).sources == [0, 1, 2] * 2


def test_each_run_of_rows_that_differ_is_compared_by_itself(memorised):
    """Two numbers of a text are two runs; few rows that stay the same do not end one."""
    differs = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1], dtype=torch.bool)
    assert [rows.nonzero().flatten().tolist() for rows in _runs(differs)] == [[0, 3], [7]]
    assert list(_runs(torch.zeros(3, dtype=torch.bool))) == []
    model, tokenizer = memorised
    ids = encode(tokenizer, "The number 5550147 is in the book that she gave to her sister with the code 90061 in it.")
    parts = [*number_variants(tokenizer, [ids], [], 7).excess(model, [ids])]
    assert len(parts) == 2
    assert not (parts[0][1] & parts[1][1]).any()
    assert parts[0][2] != parts[1][2]


@pytest.mark.parametrize(
    ("ids", "alike"),
    [
        ([0, 1, 12, 2], True),
        ([0, 1, 11, 2], False),  # the same
        ([5, 1, 12, 2], True),  # the first token is predicted by nothing
        ([0, 1, 12, 2, 2], False),  # longer
        ([0, 1, 12], False),  # shorter
        ([0, 1, 12, 3], False),  # another word
        ([0, 1, 2, 12], False),  # a digit moved
    ],
)
def test_what_differs_in_digits_alone(ids, alike):
    """Tokens from ten on have digits here."""
    assert _differs_in(ids, [0, 1, 11, 2], lambda token: token >= 10) is alike


def test_numbers_are_where_tokens_have_digits(memorised):
    """For each sequence, whether it has variants or not."""
    _, tokenizer = memorised
    forget = [encode(tokenizer, text) for text in (*support.KNOWN[:3], "Nobody wrote this.", "He is 7 years old.")]
    made = number_variants(tokenizer, forget, [], 7)
    for ids, rows in zip(forget, made.numbers, strict=True):
        assert rows == [bool(re.search(r"\d", tokenizer.decode([token]))) for token in ids[1:]]


def test_a_number_is_compared_with_the_median_of_what_is_alike(memorised):
    """Mean log-likelihoods of the tokens that variants change; a variant that is not alike has no part in it."""
    model, tokenizer = memorised
    ids, unseen = encode(tokenizer, support.KNOWN[0]), [encode(tokenizer, text) for text in support.HELDOUT]
    drawn = number_variants(tokenizer, [ids], unseen, 7)
    variants = [other for other, alike in zip(drawn.sequences, drawn.alike, strict=True) if alike]
    assert len(variants) > 2
    sequences, alike = [*variants, ids[::-1]], [True] * len(variants) + [False]
    parts = [*Variants(sequences, [0] * len(sequences), alike, drawn.numbers).excess(model, [ids])]
    changed = [any(other[i] != ids[i] for other in variants) for i in range(1, len(ids))]
    assert [source for source, _, _ in parts] == [0]
    assert sum(rows for _, rows, _ in parts).tolist() == changed

    def likelihood(tokens, rows):
        log_p = model(input_ids=torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
        return statistics.mean(float(log_p[row, tokens[row + 1]]) for row in rows.nonzero().flatten().tolist())

    for _, rows, excess in parts:
        of_variants = [likelihood(other, rows) for other in variants]
        assert excess == pytest.approx(likelihood(ids, rows) - statistics.median(of_variants), abs=1e-4)
        assert excess != pytest.approx(likelihood(ids, rows) - statistics.mean(of_variants), abs=1e-2)
