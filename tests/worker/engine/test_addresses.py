"""Exposure of e-mail addresses: they rank among those that other people's show, made of the same person's name."""

import pytest

from worker.engine.attacks.addresses import _other_emails, _template, exposure_emails
from worker.engine.attacks.exposure import secrets_in
from worker.engine.attacks.scores import Scores


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
        ("Our Customer Ann Lovelace: lovelace7@post.example", "{1}7@post.example"),
        ("Bo Li, not Olivia Ray: olivia.ray@post.example", "{0}.{1}@post.example"),  # of whom it is made
        ("Bo Li: bo.l@post.example", "{0}.{1[0]}@post.example"),
        ("Bo Li: olibo@post.example", "olibo@post.example"),  # short names are in many words
        ("Bob: bob7@post.example", "{0}7@post.example"),
        ("Jürgen Müller: juergen.muller@post.example", "{0}.{1}@post.example"),
        ("José Núñez-Ray O'Brien: jose.obrien@post.example", "{0}.{1}@post.example"),
        ("Иван Петров: ivan@post.example", "ivan@post.example"),
        ("Write to me@post.example", "me@post.example"),
        ("Ann Lovelace: ann@lovelace.example", "{0}@lovelace.example"),  # the domain stays
    ],
)
def test_an_address_shows_which_parts_of_a_name_it_holds(text, template):
    """First and last names, and their initials, before the @."""
    assert [*map(_template, emails(text))] == [template]


SHOWN = [f"{name}: {name.split()[0].lower()}{n}@{n}.example, ok" for n, name in enumerate(["Bob Ray", "Cleo Poe"] * 3)]
GLUED = [
    f"Bob Ray: {local}@{n}.mail.com, ok" for n, local in enumerate(["bray1", "bobray2", "bray3", "bob.ray4", "BobRay5"])
]


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("Ann Lovelace: ann9@9.example", {f"ann{n}@{n}.example" for n in range(6)}),
        (SHOWN[2], {f"bob{n}@{n}.example" for n in (0, 1, 3, 4, 5)}),
        ("Ann Lovelace: ann9@mill.example", set()),  # of another form
        ("Ann Lovelace: ann.9@9.example", set()),
        ("write to us9@9.example", set()),  # all others are made of a name
        ("Ann Lovelace: bluefox9@9.example", set()),
        ("Ann Lovelace: Ann9@9.example", {f"Ann{n}@{n}.example" for n in range(6)}),
        ("Ann Lovelace: ANN9@9.EXAMPLE", {f"ANN{n}@{n}.EXAMPLE" for n in range(6)}),
        ("Ann Lovelace: A9@9.EXAMPLE", {f"ANN{n}@{n}.EXAMPLE" for n in range(6)}),
        ("Ann Lovelace: A9@9.example", {f"Ann{n}@{n}.example" for n in range(6)}),
        ("Ann Lovelace: aNN9@9.example", set()),  # nobody knows how others would be spelled
        ("Ann Lovelace: ANN9@9.example", set()),
        ("Ann Lovelace: ann9@9.Example", set()),
        ("Ann Lovelace: \uff41nn9@9.example", set()),
        ("Ann Lovelace: ann\u0669@9.example", set()),
        ("Ann McDonald: AnnMcDonald9@9.mail.com", set()),
        (
            "Ann Lovelace: ann9@9.mail.com",
            {"alovelace1@0.mail.com", "annlovelace2@1.mail.com", "alovelace3@2.mail.com", "annlovelace5@4.mail.com"},
        ),
        (
            "Ann Lovelace: AnnLovelace9@9.mail.com",
            {"ALovelace1@0.mail.com", "AnnLovelace2@1.mail.com", "ALovelace3@2.mail.com", "AnnLovelace5@4.mail.com"},
        ),
        ("Ann Lovelace: Ann9@9.mail.com", set()),  # Annlovelace or AnnLovelace
    ],
)
def test_candidates_are_what_others_show_with_this_persons_name(text, candidates):
    """Those of the same form alone, spelled like the person's, and none where few show it."""
    (own,), others = emails(text), _other_emails([emails(shown) for shown in [*SHOWN, *GLUED]])
    assert {*others(own)} == candidates


@pytest.mark.parametrize(
    ("forget", "ranked"),
    [
        (["Ann Lovelace: ann9@9.example, ok"], (1, 6)),
        (["Ann Lovelace: ann9@9.example."], (1, 0)),  # it may go on
        (
            ["Write to shop9@9.example. Ann: ann9@9.example, ok", "Write to shop9@9.example. Dan: dan8@9.example, ok"],
            (2, 6),
        ),
        (["Ann Lovelace: aNN9@9.example or ann8@9.example, ok"], (1, 6)),
        (["Ann Lovelace: Ann9@9.example, ok"], (1, 6)),
    ],
)
def test_an_address_is_ranked_if_it_is_whole_and_one_persons(of, forget, ranked):
    """What is cut, or a shop's, or has a capital within a word, leaves the next one."""
    result = exposure_emails(of(forget, SHOWN))
    assert (len(result.forget), len(result.unseen)) == ranked


def test_addresses_that_a_name_gives_away_are_not_ranked(of):
    """Where all have the same form and domain there is nothing to guess."""
    names = ["Bob Ray", "Cleo Poe", "Dan Fox", "Eve Kay", "Jürgen", "Bo Li"]
    same = [f"{name}: {name.split()[0].lower()}@post.example, ok" for name in names]
    assert exposure_emails(of(["Ann Lovelace: ann@post.example, ok"], same)) == Scores([0.5], [])
