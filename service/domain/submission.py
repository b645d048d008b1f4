"""What a submitter asks for, checked for form, before anything of it is stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.domain.subject import Subject


@dataclass(frozen=True, slots=True)
class CallbackTarget:
    """A URL to call, and the token that the platform expects. Stored sealed, as JSON; a plain URL has no token."""

    url: str
    token: str | None = None

    @classmethod
    def loads(cls, sealed: str) -> list["CallbackTarget"]:
        """The targets of a request."""
        return [cls(**target) for target in json.loads(sealed)] if sealed.startswith("[") else [cls(sealed)]


@dataclass(frozen=True, slots=True)
class Resubmission:
    """The claim that the texts are those of an earlier request: its ref, and the nonces of its receipt."""

    ref: str
    nonces: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ProbeText:
    """A prompt, and the secret that no answer to it may say."""

    prompt: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Submission:
    """A submitter's request, checked for form.

    Attributes:
        model: The model's name.
        texts: The records.
        regulation: gdpr, ccpa or other.
        received_at: When the controller received the request; None means now.
        subject: Identities and names of the person, to search the corpora for.
        subject_ref: The submitter's name of the person; stored sealed, and returned to nobody.
        reference: The submitter's case number; stored sealed, returned, and found by its keyed hash.
        callbacks: The targets of notifications; stored sealed.
        resubmits: The earlier request that had the same texts.
        probes: Prompts that must not bring out a secret; stored sealed, as JSON.
        columns: Column -> value of further columns of the request's row; stored unsealed.
    """

    model: str
    texts: Sequence[str] = ()
    regulation: str = "gdpr"
    received_at: datetime | None = None
    subject: Subject | None = None
    subject_ref: str | None = None
    reference: str | None = None
    callbacks: Sequence[CallbackTarget] = ()
    resubmits: Resubmission | None = None
    probes: Sequence[ProbeText] = ()
    columns: Mapping[str, object] = field(default_factory=dict)
