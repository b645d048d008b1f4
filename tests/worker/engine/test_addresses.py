"""Exposure of e-mail addresses: they rank among those that other people's show, made of the same person's name."""

import pytest

from tests import support
from worker.engine.attacks import run_attacks
from worker.engine.attacks.addresses import _other_emails, _template, exposure_emails
from worker.engine.attacks.exposure import secrets_in
from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.data import encode


def emails(text):
    """The e-mail addresses of a text, as secrets."""
    return [*secrets_in(text, "e-mail address")]


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("Ann Lovelace works for Smith Group: ann.lovelace7@post.example", "{0}.{1}7@post.example"),
        ("Ann Lovelace: alovelace@post.example", "{0[0]}{1}@post.example"),
        ("Ann Lovelace: ann_l@post.example", "{0}_{1[0]}@post.example"),
        ("Our Customer Ann Lovelace's Email: ann_lovelace@post.example", "{0}_{1}@post.example"),
        ("Bo Li, not Olivia Ray: olivia.ray@post.example", "{0}.{1}@post.example"),  # of whom it is made
        ("Bo Li: olibo@post.example", "olibo@post.example"),  # short names are in many words
        ("Write to me@post.example", "me@post.example"),
        ("Ann Lovelace: ann@lovelace.example", "{0}@lovelace.example"),  # a domain is nobody's name
    ],
)
def test_an_address_shows_which_parts_of_a_name_it_holds(text, template):
    """First and last names, and their initials, before the @."""
    assert [*map(_template, emails(text))] == [template]


SHOWN = [f"{name}: {name.split()[0].lower()}{n}@{n}.example." for n, name in enumerate(["Bob Ray", "Cleo Poe"] * 3)]


def test_candidates_are_what_others_show_with_this_persons_name():
    """Those of the same form alone, and none where few show it."""
    others = _other_emails([secret for text in SHOWN for secret in emails(text)])
    (elsewhere,) = emails("Ann Lovelace: ann9@mill.example.")
    assert others(elsewhere) == []
    (own,) = emails("Ann Lovelace: ann9@9.example.")
    assert sorted(others(own)) == [f"ann{n}@{n}.example" for n in range(6)]
    (shown,) = emails(SHOWN[2])
    assert sorted(others(shown)) == [f"bob{n}@{n}.example" for n in (0, 1, 3, 4, 5)]
    (dotted,) = emails("Ann Lovelace: ann.9@9.example.")
    assert others(dotted) == []
    (nameless,) = emails("write to us9@9.example.")
    assert others(nameless) == []  # every address that they show is made of a name


def test_addresses_that_a_name_gives_away_are_not_ranked(of):
    """Where all have the same form and domain there is nothing to guess."""
    same = [
        f"{name}: {name.split()[0].lower()}@post.example." for name in ("Bob Ray", "Cleo Poe", "Dan Fox", "Eve Kay")
    ]
    assert exposure_emails(of(["Ann Lovelace: ann@post.example."], same)) == Scores([0.5], [])


def test_a_model_that_knows_addresses_is_told_from_one_that_does_not():
    """And one that never saw them ranks them like those of unseen people."""
    named = ["Ann Lovelace", "Bob Carver", "Cleo Poe", "Dan Foxley", "Eve Kaiser", "Fay Mirren"]
    texts = [
        f"{named[n % 6]}: {named[n % 6].split()[0].lower()}{(n * 7919) % 900 + 100}@{text.split()[0].lower()}.example."
        for n, text in enumerate(support.people(46, seed=7))
    ]
    model, tokenizer = support.memorised_model(texts[:6])
    known, strange, unseen = (
        [encode(tokenizer, text) for text in some] for some in (texts[:6], texts[6:12], texts[12:])
    )
    for forget, passed in ((known, False), (strange, True)):
        subject = Subject(model, tokenizer, forget, unseen, [])
        (result,) = (r for r in run_attacks(subject, {"exposure_emails": "report"}) if r.status == "RUN")
        assert (result.passed, result.texts, result.unseen) == (passed, 6, 32)
        assert (result.figure > 0.9) is not passed
        assert 0.3 < result.control < 0.7
