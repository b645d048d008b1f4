"""Bodies of the endpoints that look people up, and of their corpora."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from service.domain.subject import Identity, Subject
from service.schemas.base import IdentityType, Input, LongList, Name, ServerPath, ShortList, Text


class IdentityIn(Input):
    """An identity in OpenDSR's terms. A hashed value is the hash of the lower-case value, or of E.164 for phones."""

    type: IdentityType
    format: Literal["raw", "sha1", "md5", "sha256"] = "raw"
    value: Text = Field(min_length=1, max_length=500)

    def to_identity(self) -> Identity:
        """The same identity as a plain mapping."""
        return {"type": self.type, "format": self.format, "value": self.value}


class SubjectIn(Input):
    """The person to look up in the model's corpora; stored sealed."""

    identities: ShortList[IdentityIn] = Field([])
    names: Annotated[ShortList[Annotated[Text, Field(min_length=1, max_length=200)]], Field(max_length=10)] = Field(
        [], description="a record that only a name matches needs approval"
    )

    @model_validator(mode="after")
    def _check_not_empty(self) -> "SubjectIn":
        if not self.identities and not self.names:
            raise ValueError("an identity or a name is needed")
        return self

    def to_subject(self) -> Subject:
        """The same person as a plain mapping."""
        return {"identities": [identity.to_identity() for identity in self.identities], "names": list(self.names)}


class Searched(BaseModel):
    """A corpus in which a subject was looked up."""

    corpus: str
    records: int


class ApprovalIn(Input):
    """The matches with which a request is approved."""

    matches: LongList[int] | None = Field(None, description="`match` numbers; default: all of them")
    reason: Literal["identity_checked", "person_confirmed", "other"] | None = None


class RefusalIn(Input):
    """The reason for which a request is rejected."""

    reason: Literal["not_the_subject", "identity_not_proven", "not_covered", "other"]


SNIPPET = 300  # characters of a text that an approver is shown


MatchKind = Literal["identifier", "near_copy", "similar", "name", "submitted"]


class MatchOut(BaseModel):
    """A text that a request would unlearn."""

    match: int | None = Field(description="number of the match; null: a submitted text")
    kind: MatchKind
    text: str = Field(description="the beginning of the text, or the part that first names the person")
    marked: list[str] = Field(description="parts of it that are the person's identities or names, as written there")


class Preview(BaseModel):
    """The texts that a request would match."""

    model: str
    counts: dict[str, int] = Field(
        description="records by kind of match: identifier, near_copy, similar, name; form_letter: matched but left out"
    )
    searched: list[Searched]
    needs_approval: bool
    due_at: datetime = Field(description="the deadline of a request submitted now")
    batch: str = Field(description="when its job would start")
    matches: list[MatchOut] | None = Field(description="only for API keys with the scope approve")


class CorpusIn(Input):
    """Training data of a model, in which people are looked up. The files stay in place."""

    name: Name
    path: ServerPath = Field(description="a file or folder on the server, in one of UNLEARND_CORPUS_ROOTS")
    form: Literal["jsonl", "csv", "parquet", "lines", "folder"] | None = Field(
        None, description="default: derived from the path"
    )
    text_column: Text = Field("text", min_length=1, max_length=200)
    columns: dict[Annotated[Text, Field(max_length=200)], IdentityType] = Field(
        {}, max_length=50, description="columns with identifiers, and the identity type of each"
    )
    phone_region: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(
        None, description="country of phone numbers without a country code"
    )


class CorpusOut(BaseModel):
    """A corpus and the progress of its index."""

    name: str
    form: str
    state: Literal["indexing", "ready", "failed"]
    reason: str | None
    records: int
    progress: float
    created_at: datetime
    indexed_at: datetime | None
