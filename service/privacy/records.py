"""The records of a request, opened in memory."""

import json
from typing import Any

from service.audit.commitments import NONCE
from service.db.tables import DeletionRequest
from service.domain.errors import NotFound
from service.privacy.envelope import DataKey, KeyWrapper

SUBJECT_ITEM = "subject"


def request_data_key(wrapper: KeyWrapper, request: DeletionRequest) -> DataKey:
    """The open envelope of a request.

    Raises:
        NotFound: Its key was destroyed.
    """
    if request.wrapped_key is None:
        raise NotFound("The request's texts were purged.")
    return DataKey.unwrap(request.id, request.wrapped_key, wrapper)


def open_records(wrapper: KeyWrapper, request: DeletionRequest) -> list[tuple[bytes, bytes]]:
    """(nonce, text) of each record of a request.

    Raises:
        NotFound: They were purged.
    """
    envelope = request_data_key(wrapper, request)
    opened = [envelope.open(f"record/{r.position}", r.sealed) for r in request.records]
    return [(data[:NONCE], data[NONCE:]) for data in opened]


def open_subject(wrapper: KeyWrapper, request: DeletionRequest) -> tuple[bytes, bytes] | None:
    """(nonce, canonical JSON) of what a request names its person by; None if it does not.

    Raises:
        NotFound: It was purged.
    """
    if request.subject is None:
        return None
    data = request_data_key(wrapper, request).open(SUBJECT_ITEM, request.subject)
    return data[:NONCE], data[NONCE:]


def request_subject(wrapper: KeyWrapper, request: DeletionRequest) -> dict[str, Any]:
    """The identities and names of a request.

    Raises:
        NotFound: They were purged.
    """
    opened = open_subject(wrapper, request)
    found: dict[str, Any] = json.loads(opened[1]) if opened else {"identities": [], "names": []}
    return found
