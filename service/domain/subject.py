"""The person of a deletion request, and what the search for them found."""

from typing import NotRequired, TypedDict


class Identity(TypedDict, total=False):
    """One identifier of a person.

    `type` is email, phone, controller_customer_id, ...; `format` is raw (the default), sha1, md5 or sha256.
    """

    type: str
    format: str
    value: str


class Subject(TypedDict, total=False):
    """A person whom the service looks up in a model's corpora."""

    identities: list[Identity]
    names: list[str]


class SearchedCorpus(TypedDict):
    """A corpus in which a subject was looked up: its name, the number of its records, and its state."""

    corpus: str
    records: int
    state: str


class Resolution(TypedDict):
    """The index records that a request would unlearn; only a request that names a subject was searched for.

    `kinds` has the ids of all matches by their kind. `records` has the ids that are to be unlearned. `approvals` is
    the number of approvals that they need, and `approved` says whether they have them.
    """

    records: list[int]
    approvals: int
    approved: NotRequired[bool]
    kinds: NotRequired[dict[str, list[int]]]
    searched: NotRequired[list[SearchedCorpus]]
