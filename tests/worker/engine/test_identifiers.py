"""What is taken for an identifier, and what is not."""

import pytest

from worker.engine.identifiers import OF_A_KIND, PATTERNS, identifiers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rhea Lime was born on August 25, 1973.", [("date of birth", "August 25, 1973")]),
        ("Born in Leeds on 3rd of May 1980, she left.", [("date of birth", "3rd of May 1980")]),
        ("Date of birth: 12.05.1990", [("date of birth", "12.05.1990")]),
        ("Karl, geboren am 12. Mai 1980", [("date of birth", "12. Mai 1980")]),
        ("Ana, nacida el 3 de marzo de 1990", [("date of birth", "3 de marzo de 1990")]),
        ("The shop opened on 3 May 1980.", []),
        ("Her address is 210 Depot Street, Leeds.", [("home address", "210 Depot Street")]),
        ("Write to 7180 West Paraiso Drive now.", [("home address", "7180 West Paraiso Drive")]),
        ("He lives at 14b Rosengarten.", [("home address", "14b Rosengarten")]),
        ("Er wohnt in der Lindenstraße 14b, Ulm.", [("home address", "Lindenstraße 14b")]),
        ("In 2019 World Cup winners sang.", []),
        (
            "Mail ann@mail.example or call 07700 900123.",
            [("e-mail address", "ann@mail.example"), ("number", "07700 900123")],
        ),
        ("Born 1973-08-25; number 1973-08-25.", [("date of birth", "1973-08-25")]),
    ],
)
def test_the_kind_and_the_value(text, expected):
    """A date is one of birth, and a number with capitals an address, only where the words say so."""
    known = list(identifiers(text))
    assert [(one.kind, one.value) for one in known] == expected
    assert all(text[one.start :].startswith(one.value) and one.value not in repr(one) for one in known)


def test_a_text_has_a_few_of_each_kind():
    """So many that the second and third number of a record are asked for, too, and no more."""
    numbers = [f"55501{i:02}" for i in range(10)]
    assert [one.value for one in identifiers(", ".join(numbers))] == numbers[:OF_A_KIND]


@pytest.mark.parametrize(
    "part", ["a", "A-", "1.", "1 A", "born ", "1 Aa ", "12 ", "lives at 1", "born on in 1 ", "@a."]
)
def test_no_text_takes_long(part):
    """Each expression looks at a bounded number of characters from each place on; else this would not end."""
    assert len(list(identifiers(part * 100_000))) <= OF_A_KIND * len(PATTERNS)
