"""Limits of records. A record is one text of the person; the limits are settings, and the API states them."""

from collections.abc import Sequence

from service.domain.errors import Invalid


def check_records(texts: Sequence[str], *, max_records: int, max_record_bytes: int) -> None:
    """Check that texts can be the records of one request.

    Raises:
        Invalid: A text, or the number of texts, is out of bounds. The error names the field and never quotes a text.
    """
    if not texts:
        raise Invalid("At least one record is needed.", field="records")
    if len(texts) > max_records:
        raise Invalid(f"At most {max_records} records fit one request; split it.", field="records")
    for position, text in enumerate(texts):
        field = f"records.{position}.text"
        if not text.strip():
            raise Invalid("The text is empty or only white space.", field=field)
        if "\0" in text:
            raise Invalid("The text contains a NUL character.", field=field)
        if len(text.encode()) > max_record_bytes:
            raise Invalid(f"The text is over {max_record_bytes} bytes in UTF-8; split it.", field=field)
