"""Looking a person up in the corpora of a model, and reading what was found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from service.db import corpora
from service.db import tables as t
from service.domain.errors import Invalid
from service.privacy.envelope import KeyWrapper
from service.subjects import copies
from service.subjects.identifiers import Hasher, NotAnIdentity
from service.subjects.readers import Corpus, Place, UnreadableCorpus

MANY_COPIES = 20  # for each record that is certain; more of them look like a form letter


class CorpusChanged(Exception):
    """A corpus is not what was indexed; the message is its name."""


@dataclass(slots=True)
class Matches:
    """What a subject matches.

    Attributes:
        identifier: Records with one of the identities.
        near_copy: Copies of those, without another's identifier, name or number.
        similar: Copies with a name or number that is not in those: another's form letter, or an edited copy.
        name: Records with a name alone.
        searched: The corpora, with how many records each has and whether it is indexed.
    """

    identifier: list[t.CorpusRecord] = field(default_factory=list)
    near_copy: list[t.CorpusRecord] = field(default_factory=list)
    similar: list[t.CorpusRecord] = field(default_factory=list)
    name: list[t.CorpusRecord] = field(default_factory=list)
    searched: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ambiguous(self) -> bool:
        """Whether somebody has to approve what was found."""
        return bool(self.name or self.similar) or len(self.near_copy) > MANY_COPIES * len(self.identifier)

    @property
    def kinds(self) -> dict[str, list[t.CorpusRecord]]:
        """The records by what they were found by."""
        return {name: getattr(self, name) for name in ("identifier", "near_copy", "similar", "name")}


def check_subject(wrapper: KeyWrapper, subject: dict[str, Any]) -> None:
    """Refuse what can match nothing.

    Raises:
        Invalid: Names the field.
    """
    hasher = Hasher(wrapper)
    for i, identity in enumerate(subject["identities"]):
        try:
            _hashes(hasher, identity)
        except NotAnIdentity as error:
            raise Invalid(f"The value is {error}.", field=f"subject.identities.{i}.value") from None
    for i, name in enumerate(subject["names"]):
        if hasher.phrase(name) is None:
            raise Invalid("The name has no letter.", field=f"subject.names.{i}")


def _hashes(hasher: Hasher, identity: dict[str, str]) -> list[int]:
    return hasher.identity(identity["type"], identity["format"], identity["value"])


def search(wrapper: KeyWrapper, session: Session, model_id: UUID, subject: dict[str, Any]) -> Matches:
    """Look a subject up in every corpus of a model.

    Raises:
        CorpusChanged: What the index says is not there any more.
    """
    hasher, found = Hasher(wrapper), Matches()
    known = {corpus.id: corpus for corpus in corpora.of_model(session, model_id)}
    found.searched = [{"corpus": c.name, "records": c.records, "state": c.state} for c in known.values()]
    hashes = [n for identity in subject["identities"] for n in _hashes(hasher, identity)]
    if hashes:
        found.identifier = corpora.by_identifiers(session, model_id, hashes)
    seen = {record.id for record in found.identifier}
    for record in found.identifier:
        text = text_of(known, record, hasher)
        for candidate in corpora.near(session, model_id, record.bands, record.identifiers, seen):
            copy = text_of(known, candidate, hasher)
            if copies.are_alike(copies.shingles(text), copies.shingles(copy)):
                (found.similar if copies.names_others(copy, text) else found.near_copy).append(candidate)
                seen.add(candidate.id)
    phrases = [p for name in subject["names"] if (p := hasher.phrase(name))]
    if phrases:
        found.name = [r for r in corpora.by_phrases(session, model_id, phrases) if r.id not in seen]
    return found


def texts_of(wrapper: KeyWrapper, session: Session, model_id: UUID, ids: list[int]) -> list[tuple[t.CorpusRecord, str]]:
    """Records by their numbers, each with its text.

    Raises:
        CorpusChanged: One of them is not there any more.
    """
    known = {corpus.id: corpus for corpus in corpora.of_model(session, model_id)}
    hasher, found = Hasher(wrapper), corpora.records(session, ids)
    if len(found) != len(set(ids)):
        raise CorpusChanged("one that was removed")
    return [(record, text_of(known, record, hasher)) for record in found]


def text_of(known: dict[UUID, t.Corpus], record: t.CorpusRecord, hasher: Hasher) -> str:
    """A record's text, read from its corpus.

    Raises:
        CorpusChanged: It is not the text that was indexed.
    """
    corpus = known[record.corpus_id]
    try:
        text = source_of(corpus).read(Place(record.file, record.start, record.length)).text
    except (UnreadableCorpus, OSError):
        raise CorpusChanged(corpus.name) from None
    if hasher.number("text", text.encode()) != record.text_hash:
        raise CorpusChanged(corpus.name)
    return text


def source_of(corpus: t.Corpus) -> Corpus:
    """How a registered corpus is read."""
    return Corpus(Path(corpus.path), corpus.form, corpus.text_column)
