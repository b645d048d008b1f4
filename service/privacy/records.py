"""Seals the records and the subject of a request, each behind the nonce of its commitment, and opens them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from service.audit.commitments import NONCE_BYTES, commit
from service.db.tables import DeletionRequest
from service.domain.errors import NotFound
from service.domain.subject import Subject
from service.domain.submission import ProbeText
from service.privacy.envelope import DataKey, Wrapper
from service.privacy.randomness import random_bytes

SUBJECT_ITEM, REFERENCE_ITEM, PROBES_ITEM = "subject", "reference", "probes"


@dataclass(frozen=True, slots=True)
class SealedText:
    """A text as it is stored, and the opening of its commitment as the receipt has it."""

    sealed: bytes
    nonce: bytes
    commitment: bytes


def seal_text(data_key: DataKey, item: str, text: bytes) -> SealedText:
    """Seal a text under its item's name and commit to it with a fresh nonce."""
    nonce = random_bytes(NONCE_BYTES)
    return SealedText(data_key.seal(item, nonce + text), nonce, commit(nonce, text))


def seal_records(data_key: DataKey, texts: Sequence[bytes], first: int = 0) -> list[SealedText]:
    """Seal the records of a request from position `first` on."""
    return [seal_text(data_key, f"record/{position}", text) for position, text in enumerate(texts, start=first)]


def request_data_key(wrapper: Wrapper, request: DeletionRequest) -> DataKey:
    """The data key of a request.

    Raises:
        NotFound: The request was purged, or the key of its epoch was destroyed.
    """
    if request.wrapped_key is None:
        raise NotFound("The request's texts were purged.")
    return DataKey.unwrap(request.id, request.wrapped_key, wrapper)


def open_records(wrapper: Wrapper, request: DeletionRequest) -> list[tuple[bytes, bytes]]:
    """(nonce, text) of each record of a request.

    Raises:
        NotFound: The records were purged.
    """
    data_key = request_data_key(wrapper, request)
    opened = [data_key.open(f"record/{record.position}", record.sealed) for record in request.records]
    return [(data[:NONCE_BYTES], data[NONCE_BYTES:]) for data in opened]


def dump_probes(probes: Sequence[ProbeText]) -> str | None:
    """Probes as JSON; None if there are none."""
    return json.dumps([asdict(probe) for probe in probes]) if probes else None


def open_probes(wrapper: Wrapper, request: DeletionRequest) -> list[ProbeText]:
    """The probes that the submitter of a request gave.

    Raises:
        NotFound: They were purged.
    """
    if request.probes is None:
        return []
    opened = request_data_key(wrapper, request).open(PROBES_ITEM, request.probes)
    return [ProbeText(**probe) for probe in json.loads(opened)]


def open_subject(wrapper: Wrapper, request: DeletionRequest) -> tuple[bytes, bytes] | None:
    """(nonce, canonical JSON) of the identities and names of a request; None if it has none.

    Raises:
        NotFound: They were purged.
    """
    if request.subject is None:
        return None
    data = request_data_key(wrapper, request).open(SUBJECT_ITEM, request.subject)
    return data[:NONCE_BYTES], data[NONCE_BYTES:]


def reference_hash(wrapper: Wrapper, api_key_id: UUID, reference: str) -> bytes:
    """The keyed hash that finds a reference among the requests of one API key.

    The API key is part of it, so that the hashes do not show that two submitters use the same reference.
    """
    return wrapper.keyed_hash(REFERENCE_ITEM, api_key_id.bytes + reference.encode())


def open_reference(wrapper: Wrapper, request: DeletionRequest) -> str | None:
    """The submitter's reference of a request; None if it has none, or was purged."""
    if request.reference is None:
        return None
    try:
        return request_data_key(wrapper, request).open(REFERENCE_ITEM, request.reference).decode()
    except NotFound:
        return None


def request_subject(wrapper: Wrapper, request: DeletionRequest) -> Subject:
    """The identities and names of a request.

    Raises:
        NotFound: They were purged.
    """
    opened = open_subject(wrapper, request)
    subject: Subject = json.loads(opened[1]) if opened else {"identities": [], "names": []}
    return subject
