"""Near copies of a text."""

from service.subjects import near_copies

LETTER = (
    "Dear {}, the parcel that you sent us on Monday has arrived at our house in Sample Street and nothing is broken."
)


def test_a_copy_shares_a_band_and_is_alike_and_another_text_is_not(hasher):
    """Without the address, in another case and spacing."""
    text = LETTER.format("Maria Example (maria@example.org)")
    changed = LETTER.format("Maria Example").replace("Monday", "monday").replace("nothing is", "NOTHING  is")
    other = "Nobody knows why the committee met on a Tuesday, but the minutes were kept and then lost again in a fire."
    assert set(near_copies.bands(hasher, text)) & set(near_copies.bands(hasher, changed))
    assert near_copies.are_near_copies(near_copies.shingles(text), near_copies.shingles(changed))
    assert not near_copies.are_near_copies(near_copies.shingles(text), near_copies.shingles(other))
