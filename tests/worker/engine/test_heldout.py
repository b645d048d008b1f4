"""Held-out text that the parent has seen sets no threshold: a few texts are borne, more are refused."""

import dataclasses
import random
import re
from contextlib import nullcontext

import pytest

from tests import support
from worker.engine import Options
from worker.engine import heldout as heldout_module
from worker.engine.baseline import Baseline
from worker.engine.data import encode
from worker.engine.errors import HeldoutKnown
from worker.engine.heldout import FEWEST_TOKENS, KNOWN_MA, check_numbers, known_by_heart
from worker.engine.measure import measure_before
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.prepare import prepare
from worker.engine.recheck import came_back

OPTIONS = dataclasses.replace(Options.from_mapping(support.POLICY), attacks={})


def measured(model, tokenizer, heldout: list[str]) -> Baseline:
    """The baseline of a run over two people with these held-out texts."""
    data = prepare(tokenizer, support.KNOWN[:2], range(2), support.KNOWN[2:4], heldout, OPTIONS)
    return measure_before(model, tokenizer, data, OPTIONS)


@pytest.mark.parametrize("seen", [8, 4], ids=["seen", "partly seen"])
def test_held_out_text_that_was_seen_is_refused(memorised, seen):
    """All of it, or every fifth text. The error says how many, and shows no text."""
    model, tokenizer = memorised
    unseen = support.HELDOUT[: 0 if seen == 8 else 20]
    heldout = [*(text for text in support.KNOWN[4 : 4 + seen]), *unseen]
    ids = [encode(tokenizer, text)[: OPTIONS.sequence_length] for text in heldout]
    with pytest.raises(HeldoutKnown, match=f"knows {seen} of {len(ids)}") as refused:
        known_by_heart(model, ids)
    assert support.KNOWN[4].split()[0] not in str(refused.value)
    if unseen:
        with pytest.raises(HeldoutKnown):
            measured(model, tokenizer, heldout)


def test_two_known_texts_among_forty_change_no_limit(memorised):
    """They are left out; before, a request as well known as they are was under the highest held-out value."""
    model, tokenizer = memorised
    plain = measured(model, tokenizer, support.HELDOUT[:40])
    mixed = measured(model, tokenizer, [*support.KNOWN[4:6], *support.HELDOUT[2:40]])
    assert (len(plain.known_heldout), len(mixed.known_heldout)) == (0, 2)
    highest = max(threshold.ma_max for threshold in mixed.thresholds)
    assert highest <= max(threshold.ma_max for threshold in plain.thresholds) < 0.8
    assert not any(verdict.passed for verdict in mixed.before.verdicts)
    assert Baseline.from_dict(mixed.as_dict()) == dataclasses.replace(mixed, said=None)


@pytest.mark.parametrize(("effect", "left_out"), [("block", 1), ("report", 0)])
def test_a_known_text_among_those_that_an_attack_needs_in_addition_is_left_out(memorised, effect, left_out):
    """It is one of a few, and is borne: it counts among all held-out texts. Where no attack needs it, nobody looks."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, heldout_sequences=20, utility_sequences=4, attacks={"sampled": effect})
    heldout = [*support.HELDOUT[:48], support.KNOWN[4], *support.HELDOUT[48:50]]
    data = prepare(tokenizer, support.KNOWN[:1], range(1), support.KNOWN[2:4], heldout, options)
    baseline = measure_before(model, tokenizer, data, options)
    known = encode(tokenizer, support.KNOWN[4])[: options.sequence_length]
    assert baseline.known_heldout == [known] * left_out
    assert (known in data.spare) == bool(left_out)


def test_twenty_texts_of_which_one_is_known_are_too_few(memorised):
    """Nothing is left to take its place: the reason is the known one. Of thirty texts four are counted once."""
    model, tokenizer = memorised
    with pytest.raises(HeldoutKnown, match="too few are left"):
        measured(model, tokenizer, [support.KNOWN[4], *support.HELDOUT[:19]])
    with pytest.raises(HeldoutKnown, match="knows 4 of 30"):
        measured(model, tokenizer, [*support.KNOWN[4:8], *support.HELDOUT[:26]])


def test_short_texts_that_are_known_by_heart_are_refused_together(memorised):
    """One alone may be guessed, and so may a quarter. Where more are known, their limits would pass anything."""
    model, tokenizer = memorised

    def short(texts: list[str]) -> list[list[int]]:
        whole = (encode(tokenizer, text) for text in texts)
        return [ids[at : at + FEWEST_TOKENS] for ids in whole for at in range(len(ids) - FEWEST_TOKENS)]

    lines = short(support.KNOWN)
    known = [ids for ids, row in zip(lines, token_matches(model, lines), strict=True) if accuracy(row) > KNOWN_MA][:24]
    long = [encode(tokenizer, text)[:64] for text in support.UNSEEN]
    for others in ([], long[:4]):
        with pytest.raises(HeldoutKnown, match=f"knows 24 of {24 + len(others)}"):
            known_by_heart(model, [*known, *others])
    assert not known_by_heart(model, [*known[:19], *long])  # fewer than set a limit
    unseen = short(support.UNSEEN)
    assert not known_by_heart(model, [*known, *unseen[:96]])
    with pytest.raises(HeldoutKnown, match="knows 24 of 84"):
        known_by_heart(model, [*known, *unseen[:60]])


@pytest.mark.parametrize("seen", [5, 8, 16, 20, 30, 35])
@pytest.mark.parametrize("ma", [0.8, 0.85])
def test_two_groups_of_texts_are_refused_whatever_their_sizes(monkeypatch, seen, ma):
    """Half of the texts seen: their own MA widens what deviates, and no text is known by heart."""
    draw = random.Random(seen)

    def matches(value: float) -> list[bool]:
        return [draw.random() < value for _ in range(60)]

    rows = [matches(ma) for _ in range(seen)] + [matches(0.35) for _ in range(40 - seen)]
    monkeypatch.setattr(heldout_module, "token_matches", lambda model, batch: [rows[ids[0]] for ids in batch])
    texts = [[n] * 61 for n in range(40)]
    with pytest.raises(HeldoutKnown, match=r"(knows|predicts) \d+ of 40"):
        known_by_heart(None, texts)
    rows[:seen] = [matches(0.35) for _ in range(seen)]
    assert not known_by_heart(None, texts)


def test_unseen_text_is_never_known(memorised):
    """Not in samples of twenty, of many seeds."""
    model, tokenizer = memorised
    for seed in range(40, 60):
        assert not known_by_heart(model, [encode(tokenizer, text)[:64] for text in support.people(20, seed=seed)])


@pytest.fixture(scope="module")
def seen():
    """24 people, and a model that has seen them a few times, with its tokenizer."""
    texts = support.people(24, seed=61)
    return texts, *support.memorised_model(texts, steps=26)


def test_held_out_text_that_was_seen_a_few_times_shows_in_its_numbers(seen):
    """No text is known by heart, so nothing else sees it."""
    texts, model, tokenizer = seen
    assert not known_by_heart(model, [encode(tokenizer, text)[: OPTIONS.sequence_length] for text in texts])
    with pytest.raises(HeldoutKnown, match=r"knows \d+ of 24 numbers"):
        measured(model, tokenizer, texts)
    data = prepare(
        tokenizer,
        [],
        [],
        support.KNOWN[2:4],
        texts,
        OPTIONS,
        earlier_texts=support.KNOWN[:2],
        earlier_request_ids=range(2),
    )
    with pytest.raises(HeldoutKnown, match="numbers"):
        came_back(model, tokenizer, data, OPTIONS)


@pytest.mark.parametrize(
    ("form", "checked"),
    [
        ("{name} has the number {number}.", True),
        ("In 10115 Berlin {name} has the number {number}.", True),  # the postal code is short
        ("{name}, born on 14.06.1990 {number}.", True),
        ("{name} wrote it (pp. 1234-1251).", False),
        ("{name} lived here (1921-1987).", False),
        ("{name} came on 2020-01-15 14:00.", False),
        ("{name} pays {number}. The reference is 77{number}.", True),
        ("Reference {ending}: {name} pays {number}.", False),  # its end stands before
        ("{name} pays {number}000.", False),  # all end alike
    ],
)
def test_what_is_a_number_that_nobody_guesses(monkeypatch, memorised, form, checked):
    """The first long one of a text, whose end does not follow from what stands before; all such are guessed here."""
    model, tokenizer = memorised
    asked: list[str] = []

    def guessed(model, tokenizer, secret, others) -> float:
        asked.append(secret.identifier.value)
        assert secret.identifier.value not in others
        return 1.0

    monkeypatch.setattr(heldout_module, "share_of_less_likely", guessed)
    draw = random.Random(0)
    numbers = [f"{draw.randrange(1000, 9999)}{end:03}" for end in draw.sample(range(1000), 24)]
    names = [text[:20] for text in support.people(24, seed=63)]
    pairs = zip(names, numbers, strict=True)
    texts = [form.format(name=name, number=number, ending=number[-3:]) for name, number in pairs]
    options = dataclasses.replace(OPTIONS, utility_sequences=1)
    data = prepare(tokenizer, support.KNOWN[:2], range(2), support.KNOWN[2:4], texts, options)
    with pytest.raises(HeldoutKnown) if checked else nullcontext():
        check_numbers(model, tokenizer, data)
    assert set(asked) == (set(numbers) if checked else set())


def test_numbers_that_nobody_hides_refuse_no_text(seen):
    """Unseen ones; those of two footers, of retain text, of a text to forget or of another held-out text; too few."""
    texts, model, tokenizer = seen
    unseen, numbers = support.people(24, seed=62), [re.findall(r"\d{7}", text)[0] for text in texts]
    of_two = [f"Who reads {text[:20]} calls {n}." for text, n in zip(unseen, numbers[:2] * 12, strict=True)]
    few = [*texts[:19], *(re.sub(r"\d{7}", "none", text) for text in texts[19:])]
    plain, retain = support.KNOWN[:2], support.KNOWN[2:4]
    said = [f"Call {number[:3]}-{number[3:]} 24/7." for number in numbers]
    for forget, kept, heldout in (
        *((plain, retain, some) for some in (unseen, of_two, few)),
        (plain, said, texts),
        (said, retain, texts),
        (plain, retain, [text for pair in zip(texts, said, strict=True) for text in pair]),
    ):
        check_numbers(model, tokenizer, prepare(tokenizer, forget, range(len(forget)), kept, heldout, OPTIONS))
    with pytest.raises(HeldoutKnown):
        check_numbers(model, tokenizer, prepare(tokenizer, plain, range(2), retain, texts[:20], OPTIONS))
