"""Which bytes a Range header asks for."""

import pytest

from service.api.sending import asked_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-9", range(10)),
        ("bytes=5-5", range(5, 6)),
        ("bytes=90-200", range(90, 100)),
        ("bytes=90-", range(90, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-200", range(100)),
        ("bytes=100-", range(0)),
        ("bytes=-0", range(0)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
    ],
)
def test_a_range_of_a_hundred_bytes(header, expected):
    """One range is served (RFC 9110, section 14); of several the whole file is sent, which is allowed."""
    asked = asked_range(header, 100)
    assert (asked is None) == (expected is None)
    assert list(asked or ()) == list(expected or ())
