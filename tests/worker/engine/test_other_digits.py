"""Other digits for identifiers."""

import re

import pytest

from worker.engine.identifiers import all_identifiers
from worker.engine.other_digits import OtherDigits, identifiers_with_digits


def test_digits_that_never_change_belong_to_the_format():
    """Of a shape that three unseen numbers have or more; others have any digits."""
    others = OtherDigits(["Call 07123 456789.", "Call 07999 000111.", "Call 07000 555555.", "Call 12-345."], 0)
    (shown,), (strange,), (date,) = map(
        identifiers_with_digits, ("Call 07555 123123", "Call 99-999", "Born on 1.2.1990")
    )
    drawn = [others.drawn(shown) for _ in range(50)]
    assert all(re.fullmatch(r"07\d{3} \d{6}", value) for value in drawn)
    assert len({*drawn}) == 50
    assert any(not others.drawn(strange).startswith("12") for _ in range(50))
    assert (others.are_shown(shown), others.are_shown(strange), others.are_shown(date)) == (True, False, False)
    (foreign,) = identifiers_with_digits("Call 08555 123123")
    assert re.fullmatch(r"08\d{3} \d{6}", others.drawn(foreign))  # what never changes is its own
    (mail,) = identifiers_with_digits("07123@mail.example")
    assert re.fullmatch(r"\d{5}@mail.example", others.drawn(mail))  # numbers show no format of addresses
    dates = OtherDigits([f"Born on {day} May 1980." for day in (1, 2, 13)], 0)
    assert dates.are_shown(*identifiers_with_digits("born on 24 June 1977"))
    assert not dates.are_shown(date)


def test_what_is_drawn_is_another_one():
    """Where there is one; a format without another gives what it has, and mixed digits of two scripts end as well."""
    others = OtherDigits(["Code 12340.", "Code 12341.", "Code 12342."], 0)
    (one,) = identifiers_with_digits("Code 12345")
    assert {others.drawn(one) for _ in range(200)} == {f"1234{digit}" for digit in "012346789"}
    fixed = OtherDigits(["Code 12345."] * 3, 0)
    assert fixed.drawn(one) == "12345"
    assert fixed.drawn(*identifiers_with_digits("Code 12399")) == "12399"
    (mixed,) = all_identifiers("born on 1\u0662.1\u0662.1\u0662\u0662\u0662")
    assert OtherDigits([], 0).drawn(mixed) == mixed.value


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Ann was born on 14 June 1990.", r"Ann was born on (1\d|2[0-8]) June (19[4-9]|200)\d\."),
        ("Ann was born on 3rd of May 1980.", r"Ann was born on 3rd of May (19[4-9]|200)\d\."),
        ("Born 1/2/3, number 5550147", r"Born [1-9]/[1-9]/[1-9], number \d{7}"),
        ("Mail li84@163.example, ann843@163.example", r"Mail li84@163\.example, ann\d{3}@163\.example"),
        ("Born on 3 May 1980. Leeds was quiet on 3 May 1980.", r"Born on (\d May \d{4})\. Leeds was quiet on \1\."),
        ("Call +49 30 1234567.", r"Call \+\d\d \d\d \d{7}\."),
        ("Ann was born on June 4, 1990.", r"Ann was born on June [1-9], (19[4-9]|200)\d\."),
        ("Born 1990-06-14; 5550147", r"Born (19[4-9]|200)\d-(0[1-9]|1[0-2])-(0[1-9]|1[0-2]); \d{7}"),
        ("Born 14/6/90, the number 5550147", r"Born (0[1-9]|1[0-2])/[1-9]/[4-9]\d, the number \d{7}"),
        ("Mail ann843@mail.example, twice: ann843@mail.example", r"Mail (ann\d{3}@mail\.example), twice: \1"),
        ("Her address is 210 Depot Street.", r"Her address is 2\d0 Depot Street\."),  # two never change in unseen ones
        ("Code 12345 and 123456.", r"Code \d{5} and \d{6}\."),
        ("She lives at 7 Rose Lane, number \u0665\u0665\u0665\u0660\u0661\u0664\u0667.", None),
    ],
)
def test_digits_of_identifiers_are_others_of_their_format(text, form):
    """Dates stay dates; a house number of one digit stays; so do digits of other scripts."""
    arabic = [f"Tel \u0660\u0665{digit}\u0661\u0661\u0662\u0663" for digit in "\u0661\u0662\u0663"]
    unseen = [*(f"She lives at 4{digit}0 Long Road." for digit in (1, 2, 3)), *arabic]
    others = OtherDigits(unseen, 7)
    known = identifiers_with_digits(text)
    assert bool(known) is bool(form)
    drawn = {others.instead(text, known) for _ in range(50)}
    assert len(drawn) > 5 if form else drawn == {text}
    assert all(re.fullmatch(form or re.escape(text), other) for other in drawn)


def test_a_number_that_begins_like_another_has_digits_of_its_own():
    """No identifier is replaced where it is a part of another."""
    text = "12345 and 123456"
    drawn = {OtherDigits([], seed).instead(text, identifiers_with_digits(text)) for seed in range(9)}
    assert any(other[10:15] != other[:5] for other in drawn)
    assert any(other[-1] != "6" for other in drawn)
