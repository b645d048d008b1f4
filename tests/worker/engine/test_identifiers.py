"""What is taken for an identifier, and what is not."""

import pytest

from worker.engine.identifiers import NAME, all_identifiers

MAIL, BORN = ("e-mail address", "ann@mail.example"), ("date of birth", "3 May 1980")


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
        ("She moved to Flat 58I, Morgan Port, Leeds.", [("home address", "Flat 58I, Morgan Port")]),
        ("Er wohnt in der Lindenstraße 14b, Ulm.", [("home address", "Lindenstraße 14b")]),
        ("In 2019 World Cup winners sang.", []),
        ("Mail ann@mail.example or call 07700 900123.", [MAIL, ("number", "07700 900123")]),
        ("Born 1973-08-25; number 1973-08-25.", [("date of birth", "1973-08-25"), ("number", "1973-08-25")]),
        ("Call (555) 123-4567 or +1 (555) 123-4567.", [("number", "(555) 123-4567"), ("number", "+1 (555) 123-4567")]),
        ("Room 555 - 123 - 4567, in 1998. 2 dogs", [("number", "555 - 123 - 4567")]),
        ("Tel 030 - 1234567", [("number", "030 - 1234567")]),
        ("Tel (0171) - 123 45 67", [("number", "(0171) - 123 45 67")]),
        ("Tel +49 (0) 30 - 123456", [("number", "+49 (0) 30 - 123456")]),
        ("555 - 123 - 45678901", [("number", "45678901")]),
        ("1998 - 2003 - 2005, Smith (2003) 12345 people", [("number", "12345")]),
        ("From 1998 - 2003, on 3.5 in 2003 (24 people), (44 years), 12 - 14.", []),
        ("07700 900123 - 07700 900124", [("number", "07700 900123"), ("number", "07700 900124")]),
        ("12345678 (20-00-00)", [("number", "12345678"), ("number", "20-00-00")]),
        ("Born 14.06.1990 5550147", [("date of birth", "14.06.1990"), ("number", "5550147")]),
        ('{"dob": "3 May 1980", "date_of_birth": "1980-05-12"}', [BORN, ("date of birth", "1980-05-12")]),
        ("née à Aix-en-Provence le 3 mai 1980", [("date of birth", "3 mai 1980")]),
        ("NATO was founded on 4 April 1949. She was a chiropractor since 3 May 1980.", []),
        ("She moved to 5 St. James Street.", [("home address", "5 St. James Street")]),
        ("She moved 15 May 2001. Her address since 5 January 1990.", []),
        ("She lives at 00456 John Neck.", [("home address", "00456 John Neck")]),
        ("He lived in 1943 Berlin for 25 Years, and in 1990, Maria said.", []),
        ("She was born in Leeds. On 3 May 1980 the shop opened. Nobody was born. On 4 May 1980 it closed.", []),
        ("In 2021 Dr Miller left. 1999 Square Enix. They are 2 Close. Ausweg 3.", []),
        ("06\u00a012\u00a034\u202f56\u00a078", [("number", "06\u00a012\u00a034\u202f56\u00a078")]),
        ("Tel 555\u2011867\u20115309", [("number", "555\u2011867\u20115309")]),
        ("Mayor 1998\u20132004, pages 112\u2013129, 12 Oak Street\u2013Leeds", [("home address", "12 Oak Street")]),
        ("Write to\u2013ann@mail.example", [MAIL]),
        ("born on 14\u00a0June\u00a01990", [("date of birth", "14\u00a0June\u00a01990")]),
        ("She lives at 12\u00a0Oak\u00a0Street.", [("home address", "12\u00a0Oak\u00a0Street")]),
        ("", []),
    ],
)
def test_the_kind_and_the_value(text, expected):
    """A date is one of birth, and a number with capitals an address, only where the words say so. None overlaps."""
    known = list(all_identifiers(text))
    assert [(one.kind, one.value) for one in known] == expected
    assert all(text[one.start :].startswith(one.value) and one.value not in repr(one) for one in known)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Анна Ковалёва работает врачом. Её номер телефона 123.", ["Анна Ковалёва"]),
        ("Hannah Berg ist Ärztin über Österreich.", ["Hannah Berg"]),
        ("ნინო ბერიძე", ["ნინო ბერიძე"]),  # written without capitals
        ("Η Άννα Παππά είναι γιατρός.", ["Άννα Παππά"]),
        ("O'Brien Ann-Marie met Édouard Ångström", ["O'Brien Ann-Marie", "Édouard Ångström"]),
    ],
)
def test_a_name_is_words_with_capitals_in_every_script_that_has_them(text, names):
    """A letter outside of ASCII is not a capital for that."""
    assert [match.group() for match in NAME.finditer(text)] == names


@pytest.mark.parametrize(
    "part",
    [
        *(
            "a",
            "A-",
            "1.",
            "1 A",
            "born ",
            "1 Aa ",
            "12 ",
            "lives at 1",
            "born on in 1 ",
            "@a.",
            "Flat 1, A ",
            "1 St. A ",
        ),
        *(f"born {mark * 60}" for mark in "-'. a1"),
    ],
)
def test_a_long_text_is_read_in_one_pass(part):
    """Each expression looks at a bounded number of characters from each place on; else this would take hours."""
    length = 100_000
    text = (part * length)[:length]
    assert all(one.start < length for one in all_identifiers(text))
