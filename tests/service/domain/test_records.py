"""Records that are refused."""

import pytest

from service.domain.errors import Invalid
from service.domain.records import check_records


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "records"),
        (["x"] * 5, "records"),
        (["ok", ""], "records.1.text"),
        (["  \n\t"], "records.0.text"),
        (["a\0b"], "records.0.text"),
        (["é" * 6], "records.0.text"),
    ],
)
def test_bad_records_name_their_field(texts, field):
    """Each error names its field and repeats nothing."""
    with pytest.raises(Invalid) as caught:
        check_records(texts, max_records=4, max_record_bytes=11)
    assert caught.value.field == field
    assert not any(text.strip() and text in caught.value.detail for text in texts if len(text) > 1)
