"""Variants of texts to forget: other numbers of the same format, and nothing else."""

import re
from types import SimpleNamespace

import torch

from tests import support
from worker.engine.attacks.exposure import NUMBER
from worker.engine.data import encode
from worker.engine.variants import EACH, MOST, Variants, number_variants


def test_a_variant_differs_in_its_numbers_alone(memorised):
    """Each number has another of the format that unseen numbers show; the same seed gives the same."""
    _, tokenizer = memorised
    forget, unseen = ([encode(tokenizer, text) for text in texts] for texts in (support.KNOWN[:3], support.HELDOUT))
    made = number_variants(tokenizer, forget, unseen, 7)
    variants = made.sequences
    assert made.sources == [0, 1, 2] * EACH
    assert len(variants) == 3 * EACH
    assert made == number_variants(tokenizer, forget, unseen, 7) != number_variants(tokenizer, forget, unseen, 8)
    for ids, text in zip(variants, support.KNOWN[:3] * EACH, strict=True):
        other = tokenizer.decode(ids, skip_special_tokens=True)
        assert len(ids) <= len(encode(tokenizer, text))
        assert NUMBER.findall(other) != NUMBER.findall(text)
        without = [re.sub(r"\s+", " ", NUMBER.sub("#", value)) for value in (text, other)]
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
        [excess for _, rows, excess in number_variants(tokenizer, side, unseen, 7).excess(model, side) if rows.any()]
        for side in (known, strange)
    )
    assert min(of_known) > 1.0
    assert sum(map(abs, of_strange)) / max(1, len(of_strange)) < min(of_known)


def test_a_number_is_compared_with_the_median(memorised, monkeypatch):
    """One variant that is far off does not count; the rows are those in which a number stands."""
    model, tokenizer = memorised
    ids, unseen = encode(tokenizer, support.KNOWN[0]), [encode(tokenizer, text) for text in support.HELDOUT]
    variants = [other for other in number_variants(tokenizer, [ids], unseen, 7).sequences if len(other) == len(ids)][:3]
    scores = [SimpleNamespace(log_p=torch.full((len(ids) - 1,), value)) for value in (-2.0, -1.0, -3.0, -90.0)]
    monkeypatch.setattr("worker.engine.variants.token_scores", lambda *_: scores)
    made = Variants([*variants, ids], [0] * 4)  # a variant that is no other text is left out
    ((source, rows, excess),) = made.excess(model, [ids])
    assert (source, excess) == (0, 1.0)
    assert rows.tolist() == [any(other[i] != ids[i] for other in variants) for i in range(1, len(ids))]
    assert torch.equal(made.numbers([ids])[0], rows)
