"""Opens the sealed records and the sealed subject of a request."""

import json

from service.audit.commitments import NONCE_BYTES
from service.db.tables import DeletionRequest
from service.domain.errors import NotFound
from service.domain.json_types import JsonObject
from service.privacy.envelope import DataKey, KeyWrapper

SUBJECT_ITEM = "subject"


def request_data_key(wrapper: KeyWrapper, request: DeletionRequest) -> DataKey:
    """The data key of a request.

    Raises:
        NotFound: The request was purged, which destroyed the key.
    """
    if request.wrapped_key is None:
        raise NotFound("The request's texts were purged.")
    return DataKey.unwrap(request.id, request.wrapped_key, wrapper)


def open_records(wrapper: KeyWrapper, request: DeletionRequest) -> list[tuple[bytes, bytes]]:
    """(nonce, text) of each record of a request.

    Raises:
        NotFound: The records were purged.
    """
    data_key = request_data_key(wrapper, request)
    opened = [data_key.open(f"record/{record.position}", record.sealed) for record in request.records]
    return [(data[:NONCE_BYTES], data[NONCE_BYTES:]) for data in opened]


def open_subject(wrapper: KeyWrapper, request: DeletionRequest) -> tuple[bytes, bytes] | None:
    """(nonce, canonical JSON) of the identities and names of a request; None if it has none.

    Raises:
        NotFound: They were purged.
    """
    if request.subject is None:
        return None
    data = request_data_key(wrapper, request).open(SUBJECT_ITEM, request.subject)
    return data[:NONCE_BYTES], data[NONCE_BYTES:]


def request_subject(wrapper: KeyWrapper, request: DeletionRequest) -> JsonObject:
    """The identities and names of a request.

    Raises:
        NotFound: They were purged.
    """
    opened = open_subject(wrapper, request)
    subject: JsonObject = json.loads(opened[1]) if opened else {"identities": [], "names": []}
    return subject
