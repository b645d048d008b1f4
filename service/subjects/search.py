"""Looking a person up in the corpora of a model, and reading what was found."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from uuid import UUID

from sqlalchemy.orm import Session

from service.db import corpora, models
from service.db.corpus_tables import Corpus, CorpusRecord
from service.domain.errors import Invalid
from service.domain.json_types import JsonObject
from service.privacy.envelope import KeyWrapper
from service.subjects import near_copies
from service.subjects.identifiers import Hasher, NotAnIdentity, says_more
from service.subjects.readers import CorpusReader, Place, UnreadableCorpus

MANY_COPIES = 20  # for each record that is certain; more of them look like a form letter


class Unsearchable(Exception):
    """Nobody can be looked up now; the message is a code, and where it helps a corpus' name."""

    @property
    def outdates(self) -> bool:
        """Whether what was found before is of an index that is no more."""
        return str(self).startswith(("corpus_changed", "corpus_removed"))


@dataclass(slots=True)
class Matches:
    """What a subject matches.

    Attributes:
        identifier: Records with one of the identities.
        near_copy: Copies of those, with no other identifier and no word more.
        similar: Other copies: with a word more, as an edited one or the next person's form letter has, or with an
            identifier more, as a letter that somebody has sent on.
        name: The first 500 records with a name alone.
        form_letters: How many further records were left out, or the first 500 of them: each has another's identifier
            in place of the person's, and there are so many of them that it is a form.
        searched: The corpora, as `Sources.searched`.
    """

    identifier: list[CorpusRecord] = field(default_factory=list)
    near_copy: list[CorpusRecord] = field(default_factory=list)
    similar: list[CorpusRecord] = field(default_factory=list)
    name: list[CorpusRecord] = field(default_factory=list)
    form_letters: int = 0
    searched: list[JsonObject] = field(default_factory=list)

    @property
    def ambiguous(self) -> bool:
        """Whether somebody has to approve what was found."""
        return bool(self.name or self.similar) or len(self.near_copy) > MANY_COPIES * len(self.identifier)

    @property
    def kinds(self) -> dict[str, list[CorpusRecord]]:
        """The records by what they were found by."""
        return {name: getattr(self, name) for name in ("identifier", "near_copy", "similar", "name")}


def check_subject(wrapper: KeyWrapper, subject: JsonObject) -> None:
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


def check_searchable(
    session: Session, wrapper: KeyWrapper, model_name: str, subject: JsonObject, *, has_texts: bool
) -> None:
    """Refuse a subject that nobody could look up: where nothing is searched, "nothing found" would be a lie.

    Raises:
        Invalid: Names the field.
    """
    check_subject(wrapper, subject)
    model = models.by_name(session, model_name)
    if model is None:
        return
    held = corpora.of_model(session, model.id)
    if not held:
        raise Invalid(
            "The model has no corpus to look anybody up in: submit the texts, or register its corpora.",
            field="subject",
            code="no_corpora",
        )
    indexed = {"email", "phone"}.union(*(corpus.columns.values() for corpus in held))
    asked = {identity["type"] for identity in subject["identities"]}
    if asked and not (asked & indexed or subject["names"] or has_texts):
        raise Invalid(
            "No corpus of the model has identifiers of this type: name the column that holds them.",
            field="subject.identities.0.type",
            code="type_not_indexed",
        )


def _hashes(hasher: Hasher, identity: dict[str, str]) -> list[int]:
    return hasher.identity(identity["type"], identity["format"], identity["value"])


def search(sources: "SearchableCorpora", subject: JsonObject) -> Matches:
    """Look a subject up in every corpus of a model.

    Raises:
        Unsearchable: As `Sources.searched`; or too much is found, or a text is not what was indexed.
    """
    found, session, model_id, hasher = Matches(), sources.session, sources.model_id, sources.hasher
    found.searched = sources.searched
    hashes = [n for identity in subject["identities"] for n in _hashes(hasher, identity)]
    if hashes:
        found.identifier = _few(corpora.by_identifiers(session, model_id, hashes))
    seen = {record.id for record in found.identifier}
    for record in found.identifier:
        _add_copies(found, sources, record, seen)
    phrases = [p for name in subject["names"] if (p := hasher.phrase(name))]
    if phrases:
        found.name = [r for r in corpora.by_phrases(session, model_id, phrases) if r.id not in seen]
    return found


def _few(records: list[CorpusRecord]) -> list[CorpusRecord]:
    if len(records) >= corpora.MAX_MATCHES:
        raise Unsearchable("too_many_matches")
    return records


def _add_copies(found: Matches, sources: "SearchableCorpora", record: CorpusRecord, seen: set[int]) -> None:
    """What is like a record that is certain, by how sure it is that it is the same person's."""
    text = sources.text(record)
    shingles = near_copies.shingles(text)

    def alike(candidates: list[CorpusRecord]) -> Iterator[tuple[CorpusRecord, str]]:
        for candidate in (c for c in candidates if c.id not in seen):
            copy = sources.text(candidate)
            if near_copies.are_near_copies(shingles, near_copies.shingles(copy)):
                yield candidate, copy

    for candidate, copy in alike(_few(corpora.near_copies(sources.session, sources.model_id, record))):
        (found.similar if says_more(copy, text) else found.near_copy).append(candidate)
        seen.add(candidate.id)
    others = corpora.near_copies_of_others(sources.session, sources.model_id, record)
    if len(others) < corpora.MAX_OTHERS:  # less those with another's words, too, in place of this person's
        others = [c for c, copy in alike(others) if not (says_more(copy, text) and says_more(text, copy))]
    if len(others) > MANY_COPIES:
        found.form_letters += len(others)
    else:
        found.similar += others
        seen |= {candidate.id for candidate in others}


def read_texts(sources: "SearchableCorpora", ids: list[int]) -> list[tuple[CorpusRecord, str]]:
    """Records by their numbers, each with its text.

    Raises:
        Unsearchable: One of them is not there any more.
    """
    found = corpora.records(sources.session, ids)
    if len(found) != len(set(ids)):
        raise Unsearchable("corpus_removed")
    return [(record, sources.text(record)) for record in found]


class SearchableCorpora:
    """The corpora of a model as they are in one transaction, and their files."""

    def __init__(self, wrapper: KeyWrapper, session: Session, model_id: UUID) -> None:
        """Read which there are; `session` is of that transaction."""
        self.session, self.model_id, self.hasher = session, model_id, Hasher(wrapper)
        self._corpora = {corpus.id: corpus for corpus in corpora.of_model(session, model_id)}
        self._files = {corpus.id: corpus_reader(corpus) for corpus in self._corpora.values()}

    @cached_property
    def searched(self) -> list[JsonObject]:
        """The corpora, as `listed`, once it is sure that all of them can be searched and read.

        Raises:
            Unsearchable: There is none, or one that could not be indexed, is away, or has another size than it had.
        """
        if not self._corpora:
            raise Unsearchable("no_corpora")
        for corpus in self._corpora.values():
            if corpus.state == "failed":
                raise Unsearchable(f"corpus_failed: {corpus.name}")
            try:
                same = corpus.state != "ready" or self._files[corpus.id].size() == corpus.size
            except OSError:
                raise Unsearchable(f"corpus_away: {corpus.name}") from None
            except UnreadableCorpus:
                same = False
            if not same:
                raise Unsearchable(f"corpus_changed: {corpus.name}")
        return searched_corpora(self._corpora.values())

    def text(self, record: CorpusRecord) -> str:
        """A record's text, read from its corpus.

        Raises:
            Unsearchable: It is not the text that was indexed.
        """
        corpus = self._corpora.get(record.corpus_id)
        if corpus is None:
            raise Unsearchable("corpus_removed")
        try:
            text = self._files[corpus.id].read(Place(record.file, record.start, record.length)).text
        except OSError:
            raise Unsearchable(f"corpus_away: {corpus.name}") from None
        except UnreadableCorpus:
            raise Unsearchable(f"corpus_changed: {corpus.name}") from None
        if self.hasher.number("text", text.encode()) != record.text_hash:
            raise Unsearchable(f"corpus_changed: {corpus.name}")
        return text


def searched_corpora(these: Iterable[Corpus]) -> list[JsonObject]:
    """Corpora, with how many records each has and whether it is indexed; no file is looked at."""
    return [{"corpus": c.name, "records": c.records, "state": c.state} for c in these]


def corpus_reader(corpus: Corpus) -> CorpusReader:
    """How a registered corpus is read."""
    return CorpusReader(Path(corpus.path), corpus.form, corpus.text_column)
