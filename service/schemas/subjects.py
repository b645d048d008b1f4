"""People: how they are looked up, in what, and what was found."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from service.schemas.base import IdentityType, In, Name, ServerPath, Text


class IdentityIn(In):
    """Something that a person is known by, as OpenDSR names it; hashed: of the value in lower case, phones as E.164."""

    type: IdentityType
    format: Literal["raw", "sha1", "md5", "sha256"] = "raw"
    value: Text = Field(min_length=1, max_length=500)


class SubjectIn(In):
    """The person, to be looked up in the model's corpora; stored sealed."""

    identities: list[IdentityIn] = Field([], max_length=50)
    names: list[Annotated[Text, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=10, description="what a name alone finds waits for approval"
    )

    @model_validator(mode="after")
    def _names_somebody(self) -> "SubjectIn":
        if not self.identities and not self.names:
            raise ValueError("an identity or a name is needed")
        return self


class Searched(BaseModel):
    """A corpus in which a subject was looked up."""

    corpus: str
    records: int


class ApprovalIn(In):
    """What of its matches a request is approved with."""

    matches: list[int] | None = Field(None, max_length=10_000, description="`match` numbers; default: all of them")


class RefusalIn(In):
    """Why a request is refused."""

    reason: Literal["not_the_subject", "identity_not_proven", "not_covered", "other"]


class MatchOut(BaseModel):
    """Something that a request would unlearn."""

    match: int | None = Field(description="null: submitted as a text")
    kind: Literal["identifier", "near_copy", "similar", "name", "submitted"]
    text: str = Field(description="its beginning")


class Preview(BaseModel):
    """What a request would match."""

    model: str
    counts: dict[str, int] = Field(
        description="by what records are found: identifier, near_copy, similar, name; and form_letter, left out"
    )
    searched: list[Searched]
    needs_approval: bool
    due_at: datetime = Field(description="if it were submitted now")
    batch: str = Field(description="when a job would begin with it")
    matches: list[MatchOut] | None = Field(description="for keys with the scope approve alone")


class CorpusIn(In):
    """Register training data of a model, to look people up in; it stays where it is."""

    name: Name
    path: ServerPath = Field(description="a file or folder on the server, absolute")
    form: Literal["jsonl", "csv", "parquet", "lines", "folder"] | None = Field(None, description="default: by the path")
    text_column: Text = Field("text", min_length=1, max_length=200)
    columns: dict[Annotated[Text, Field(max_length=200)], IdentityType] = Field(
        {}, max_length=50, description="columns that hold identifiers, and of which type"
    )
    phone_region: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(
        None, description="country of telephone numbers without a prefix"
    )


class CorpusOut(BaseModel):
    """A corpus, and how far it is indexed."""

    name: str
    form: str
    state: Literal["indexing", "ready", "failed"]
    reason: str | None
    records: int
    progress: float
    created_at: datetime
    indexed_at: datetime | None
