"""Exposure: numbers, dates and addresses rank first in a model that knows them, and anywhere in one that does not."""

import copy
import random
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests import support
from worker.engine.attacks import run_attacks, scores
from worker.engine.attacks.addresses import exposure_addresses, exposure_emails
from worker.engine.attacks.exposure import (
    MOST_ATTACKS,
    Secret,
    _log_likelihoods,
    _shares,
    exposure,
    exposure_dates,
    number_ranks,
    secrets_in,
    share_of_less_likely,
)
from worker.engine.attacks.scores import LEVEL, Scores, least_unseen, rank_test
from worker.engine.attacks.subject import Subject
from worker.engine.data import encode
from worker.engine.identifiers import Identifier
from worker.engine.metrics.token_scores import token_scores
from worker.engine.other_digits import OtherDigits


def test_the_likelihood_after_a_cached_prefix_is_that_of_the_whole_text(of):
    """Of the tokens in which the values differ, and of those after them, whatever part a value is in."""
    model, tokenizer = of([]).model, of([]).tokenizer
    secret = next(secrets_in(support.KNOWN[0], "number"))
    value = secret.identifier.value
    assert support.KNOWN[0].startswith(secret.before + value)
    assert secret.before not in repr(secret)
    values = [value, "1234567", "76543", *(f"{value[:-1]}{n % 10}" for n in range(70))]
    measured = _log_likelihoods(model, tokenizer, secret.before, values)
    start = len(encode(tokenizer, secret.before.rstrip()))
    whole = token_scores(model, [encode(tokenizer, secret.before + number) for number in values])
    expected = torch.tensor([float(one.log_p[start - 1 :].sum()) for one in whole])
    assert torch.allclose(torch.tensor(measured).diff(), expected.diff(), atol=1e-3)


def test_likelihoods_are_compared_within_the_models_positions(of):
    """What is too long loses its beginning; what differs in the first token of all is not compared."""
    tokenizer = of([]).tokenizer
    longest = 64
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=longest, n_embd=32, n_layer=1, n_head=2)
    ).eval()
    text = support.KNOWN[0] * 4
    ids = [encode(tokenizer, text + value) for value in ("5", "1234567")]
    assert min(map(len, ids)) > longest
    over = max(map(len, ids)) - longest
    measured = _log_likelihoods(model, tokenizer, text, ["5", "1234567"])
    start = len(encode(tokenizer, text)) - over
    whole = token_scores(model, [own[over:] for own in ids])
    assert measured == pytest.approx([float(one.log_p[start - 1 :].sum()) for one in whole], abs=1e-3)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = None
    nothing = Secret("", Identifier("number", 0, "5550147"))
    assert share_of_less_likely(model, tokenizer, nothing, ["6660147", "7770147"]) is None


DATED = [f"{text} Born on {1 + n % 28} May {1950 + 7 * n % 50}." for n, text in enumerate(support.people(46, seed=7))]


NAMES = ["Ann Lovelace", "Bob Carver", "Cleo Poe", "Dan Foxley", "Eve Kaiser", "Fay Mirren"]
FIRST = [name.split()[0] for name in NAMES]
SMALL = [name.lower() for name in FIRST]
IN_ADDRESSES = [*FIRST[:3], *SMALL[3:], *SMALL[:3], *FIRST[3:]] * 4  # half of the people write theirs with a capital
MAILED = [
    f"{name}: {first}{(n * 7919) % 900 + 100}@{text.split()[0].lower()}.example, ok"
    for n, (name, first, text) in enumerate(zip(NAMES * 8, IN_ADDRESSES, support.people(46, seed=7), strict=False))
]


@pytest.mark.parametrize(("attack", "texts"), [(exposure_dates, DATED), (exposure_emails, MAILED)])
def test_what_a_model_knows_is_told_from_what_it_never_saw(attack, texts):
    """Dates of birth are ranked apart from numbers, and e-mail addresses beside others of the same name."""
    model, tokenizer = support.memorised_model(texts[:6], steps=80)
    known, strange, unseen = (
        [encode(tokenizer, text) for text in some] for some in (texts[:6], texts[6:12], texts[12:])
    )
    for forget, passed in ((known, False), (strange, True)):
        subject = Subject(model, tokenizer, forget, unseen, [])
        (result,) = (r for r in run_attacks(subject, {attack.__name__: "report"}) if r.status == "RUN")
        assert (result.passed, result.texts, result.unseen) == (passed, 6, len(unseen))
        assert (result.figure > 0.9) is not passed
        assert 0.3 < result.control < 0.7
    assert attack(Subject(model, tokenizer, known, unseen, [])).two_sided


@pytest.mark.parametrize(
    ("attack", "text", "scored"),
    [
        (exposure, "Ann was born on 14 June 1990.", 0),
        (exposure, "Ann was born on 14 June 1990, and has the code 90-061-77.", None),  # no unseen one has this shape
        (exposure, "Ann has the number 5550147.", 1),
        (exposure_dates, "Ann has the number 5550147.", 0),
        (exposure_dates, "Ann was born on 14 June 1990, and has the number 5550147.", None),
        (exposure_addresses, "Ann has the number 5550147.", 0),
    ],
)
def test_an_identifier_whose_form_no_unseen_text_shows_is_not_ranked(of, attack, text, scored):
    """There is nothing to compare it with: the attack is not run."""
    result = attack(of([text]))
    assert len(result.forget) == (1 if scored is None else scored)
    assert scored is not None or not result.unseen


def test_every_number_of_a_record_is_ranked(of):
    """A number that is known beside one that is not is as exposed as one alone; a copy of it is no memory."""
    model, tokenizer = of([]).model, of([]).tokenizer
    known = support.KNOWN[0]
    (secret,) = secrets_in(known, "number")
    texts = [f"Client {48213 + 7 * n}, {text}" for n, text in enumerate([known, *support.people(40, seed=9)])]
    subject = of(texts[:1], texts[1:])
    pairs = [*secrets_in(texts[0], "number")]
    assert [one.identifier.value for one in pairs] == ["48213", secret.identifier.value]
    others = OtherDigits([*texts[1:]], seed=0)
    assert all(others.are_shown(one.identifier) for one in pairs)
    (share,) = exposure(subject).forget
    draw = [others.drawn(one.identifier) for one in pairs for _ in range(100)]
    alone = [share_of_less_likely(model, tokenizer, pairs[n], draw[100 * n : 100 * n + 100]) for n in (0, 1)]
    assert alone[1] > 0.99 > alone[0]
    assert share == max(alone) ** 2
    assert [*secrets_in(f"{texts[0]} Again: {secret.identifier.value}.", "number")] == pairs


def test_how_many_numbers_a_text_has_says_nothing(monkeypatch):
    """One of sixteen texts is compared with three of each of 64, of a model that knows none; a known one shows."""
    monkeypatch.setattr(scores, "PERMUTATIONS", 2000)
    draw, failed = random.Random(0), Counter()
    monkeypatch.setattr(sys.modules[exposure.__module__], "share_of_less_likely", lambda *of: of[-1])

    def text(count: int, *, known: bool) -> list[tuple[None, None, float]]:
        return [(None, None, 1.0 if known and not place else draw.random()) for place in range(count)]

    for known in (0, 5) * 100:
        forget = [text(3 if known else 1, known=person < known) for person in range(16)]
        unseen = [text(3, known=False) for _ in range(64)]
        sides = (_shares(SimpleNamespace(model=None, tokenizer=None), side) for side in (forget, unseen))
        failed[known] += rank_test(*sides, two_sided=True) < (LEVEL / MOST_ATTACKS if known else LEVEL)
    assert failed[0] <= 100 * (LEVEL + 3 * (LEVEL * (1 - LEVEL) / 100) ** 0.5)
    assert failed[5] >= 70


@pytest.mark.parametrize(
    ("attack", "shown", "rare"),
    [(exposure, support.KNOWN[0], "Al has the code 90-061-77."), (exposure_dates, DATED[0], "Al, born on 1990-06-14.")],
)
def test_an_identifier_of_a_rare_form_does_not_silence_the_attack(of, attack, shown, rare):
    """The others of the job are ranked as they are without it."""
    subject = of([shown], [*DATED, *support.people(30)])
    alone = attack(subject)
    assert (len(alone.forget), len(alone.unseen) > 20) == (1, True)
    assert attack(replace(subject, forget=[encode(subject.tokenizer, rare), *subject.forget])) == alone


def test_only_unseen_identifiers_of_a_shown_form_count(of, monkeypatch):
    """One request needs many of them: others in between do not take their place."""
    monkeypatch.setattr(sys.modules[exposure.__module__], "MOST_ATTACKS", 1)
    needed = least_unseen(1, LEVEL, two_sided=True)
    shown = [f"Bo has the number {5000000 + 37 * n}." for n in range(needed + 20)]
    rare = [f"Bo has the code {10 ** (8 + n)}." for n in range(10)]
    result = exposure(of(["Ann has the number 5550147."], [*rare, *shown]))
    assert len(result.unseen) == needed


HOMES = [f"{n} Elm Lane" for n in range(1, 6)]
LIVING = [f"Bo lives at {home}." for home in HOMES]


def test_home_addresses_are_ranked_among_those_of_unseen_texts(of):
    """Among all but a text's own, at most a hundred; of too few of its form, nothing is said."""
    model, tokenizer = of([]).model, of([]).tokenizer
    result = exposure_addresses(of(["Ann lives at 7 Oak Road."], LIVING))
    secrets = [next(secrets_in(text, "home address")) for text in ["Ann lives at 7 Oak Road.", *LIVING]]
    shares = [
        share_of_less_likely(model, tokenizer, secret, [home for home in HOMES if home != secret.identifier.value])
        for secret in secrets
    ]
    assert result == Scores(shares[:1], shares[1:], two_sided=True)
    for few in (["Ann lives at 7 Oak Road."], LIVING[:2]), (["Ann: Oakstraße 7, Bonn."], LIVING):
        assert exposure_addresses(of(*few)) == Scores([0.5], [])
    many = [f"Bo lives at {n} Elm Lane." for n in range(150)]
    (share,) = exposure_addresses(of(["Ann lives at 7 Oak Road."], many)).forget
    assert share * 100 == pytest.approx(round(share * 100))


@pytest.mark.parametrize(
    ("forget", "unseen", "retain", "scored"),
    [
        (["Ann lives at 7 Oak Road."] * 3, LIVING + LIVING[:1], [], (1, 5)),  # a household asks together
        (["Ann lives at 7 Oak Road"], LIVING, [], (1, 0)),  # it may be cut
        (["Ann lives at 7 Stratford-"], LIVING, [], (1, 0)),
        (["Ann lives at 7 Oak Road. Write to 7 Oak Road"], LIVING, [], (1, 5)),
        (["Ann lives at 7 Oak Road.", "Al: Oakstraße 7, Bonn."], LIVING, [], (1, 5)),  # of no form that they show
        (["Ann lives at 7 Oak Road.", "Al lives at 7  OAK ROAD."], LIVING, [], (1, 5)),
        (["Ann lives at 7 Oak Road."], [*LIVING, "Bo lives at 5 Elm"], [], (1, 5)),
        (["Ann lives at 7 Oak Road."], [*LIVING, "Bo lives at 7 Oak Road."], [], (0, 0)),  # she is no stranger there
        (["Ann lives at 1 Elm Lane.", "Al lives at 7 Oak Road."], LIVING, [], (1, 4)),
        (["Write to 9 Mill Street. Ann lives at 7 Oak Road."], LIVING, ["Write to 9 Mill Street."], (1, 5)),
    ],
)
def test_a_home_address_is_ranked_once_and_only_if_it_is_one_persons(of, forget, unseen, retain, scored):
    """What is cut, or said elsewhere, is likelier for other reasons."""
    subject = of(forget, unseen)
    subject = replace(subject, retain=[encode(subject.tokenizer, text) for text in retain])
    result = exposure_addresses(subject)
    assert (len(result.forget), len(result.unseen)) == scored


def test_an_identifier_counts_in_whatever_window_it_stands(of):
    """And an address that ends a text is whole, if the window is not full."""
    unseen = [*LIVING, *support.people(30)]
    subject = of(["Ann has a cat.", "Al has the number 5550147."], unseen)
    first, second = ([ids] for ids in subject.forget)
    number, home = (
        encode(subject.tokenizer, text) for text in ("Ann has 5550148 as number.", "Ann lives at 7 Oak Road")
    )
    subject = replace(subject, requests=[[*first, number, home], second], length=len(home) + 1)
    alone = exposure(of(["Ann has 5550148 as number.", "Al has the number 5550147."], unseen))
    assert exposure(subject).forget == alone.forget
    assert len(exposure_addresses(subject).forget) == 1
    assert not exposure_addresses(replace(subject, length=len(home))).unseen


def test_most_of_the_people_are_ranked_or_nothing_is_said(of):
    """PASS over three people of twenty would read as if it were about all."""
    shown, rare = "Ann has the number 5550147.", "Al has the code 90-061-77."
    assert len(exposure(of([shown, rare], support.people(30))).forget) == 1
    result = exposure(of([shown, rare, "Bo has the code 90-061-78."], support.people(30)))
    assert (len(result.forget), result.unseen) == (3, [])
    (judged,) = (
        r for r in run_attacks(of([shown, rare], support.people(30)), {"exposure": "report"}) if r.name == "exposure"
    )
    assert judged.partial is True


def test_an_address_at_the_end_of_a_text_is_one_on_either_side(of):
    """Records and held-out texts are of one form. What a full window cuts counts among those that nobody ranked."""
    unseen = [f"Bo lives at {n} Elm Lane" for n in range(30)]
    subject = of(["Ann lives at 7 Oak Road"], unseen)
    assert exposure_addresses(subject) == Scores([0.5], [], two_sided=False)
    whole = exposure_addresses(replace(subject, length=99))
    assert (len(whole.forget), len(whole.unseen)) == (1, 30)
    cut = [f"{name} lives at {n} Oak Road" for n, name in enumerate(("Al", "Bo", "Cy"))]
    assert exposure_addresses(of([*cut, "Ann lives at 7 Oak Road."], LIVING)) == Scores([0.5] * 4, [])


def test_a_number_is_compared_with_spare_text_where_few_have_one(of):
    """The others of its job do not keep a single person from being tested."""
    numbers = [f"Bo has the number {5000000 + 37 * n}." for n in range(40)]
    subject = of(["Ann has the number 5550147.", "Al has a cat."], ["Bo has a dog."] * 30)
    more = [*subject.unseen, *(encode(subject.tokenizer, text) for text in numbers)]
    assert (len(exposure(subject).unseen), len(exposure(replace(subject, heldout=more)).unseen)) == (0, 40)


def test_a_known_number_ranks_first_and_an_unknown_one_anywhere(of):
    """Among a hundred random numbers of its format; 1 is the likeliest."""
    subject = of(support.KNOWN[:1])
    known, unknown = (
        number_ranks(subject, texts, support.HELDOUT, 100) for texts in (support.KNOWN[:6], support.people(12, seed=77))
    )
    assert known == [1] * 6
    assert len(set(unknown)) > 6
    assert all(1 <= rank <= 101 for rank in unknown)
