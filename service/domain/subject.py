"""The person of a deletion request, as requests name them."""

from typing import TypedDict


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
