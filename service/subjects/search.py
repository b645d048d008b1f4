"""Looks a person up in the corpora of a model, and reads the texts of the records that match."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

from sqlalchemy.orm import Session

from service.confined import OutsideRoots, Roots
from service.db import corpora, models
from service.db.corpus_tables import Corpus, CorpusRecord
from service.db.session import Database
from service.domain.errors import Invalid
from service.domain.json_types import JsonObject
from service.domain.subject import Identity, SearchedCorpus, Subject
from service.privacy.envelope import Wrapper
from service.schemas.models import Policy
from service.subjects import near_copies
from service.subjects.errors import TooManyMatches, Unsearchable
from service.subjects.identifiers import Hasher, NotAnIdentity, has_additional_words
from service.subjects.readers import CorpusReader, Place, UnreadableCorpus

FEW_MATCHES = 20  # certain matches in one corpus
MANY_COPIES = 20  # for each record that has an identifier; more copies look like a form letter


@dataclass(slots=True)
class Matches:
    """The records that a subject matches.

    Attributes:
        identifier: Records with one of the identities.
        near_copy: Near copies of those, without another identifier and without an additional word.
        similar: Other near copies. One with an additional word may be an edited text or the next person's form letter.
            One with an additional identifier may be a letter that somebody has forwarded.
        name: The first 500 records that have only a name.
        form_letters: The number of near copies that were left out (at most 500 are counted). Each has another person's
            identifier in place of the subject's, and there are so many that the text is a form letter.
        searched: The corpora, as in `SearchableCorpora.searched`.
        share: The largest share of a corpus' records that are certain matches. A corpus with at most `FEW_MATCHES` of
            them does not count: in a small corpus, a few records of one person are a large share.
    """

    identifier: list[CorpusRecord] = field(default_factory=list)
    near_copy: list[CorpusRecord] = field(default_factory=list)
    similar: list[CorpusRecord] = field(default_factory=list)
    name: list[CorpusRecord] = field(default_factory=list)
    form_letters: int = 0
    searched: list[SearchedCorpus] = field(default_factory=list)
    share: float = 0

    @property
    def certain(self) -> list[CorpusRecord]:
        """The records that an identifier matches, and their near copies."""
        return [*self.identifier, *self.near_copy]

    def need_approval(self, model_policy: JsonObject) -> bool:
        """Whether a person has to approve the matches.

        An address that stands in very many records is hardly one person's: it is a shop's, a mailing list's, or one
        that an attacker has picked to have much of the corpus unlearned.
        """
        policy = Policy(**model_policy)
        is_widespread = len(self.certain) > policy.max_certain_matches or self.share > policy.max_certain_share
        is_ambiguous = bool(self.name or self.similar) or len(self.near_copy) > MANY_COPIES * len(self.identifier)
        return is_ambiguous or is_widespread

    @property
    def kinds(self) -> dict[str, list[CorpusRecord]]:
        """The records by the kind of their match."""
        return {name: getattr(self, name) for name in ("identifier", "near_copy", "similar", "name")}


def check_subject(wrapper: Wrapper, subject: Subject) -> None:
    """Refuse a subject that can match nothing.

    Raises:
        Invalid: An identity or a name cannot be looked up; names the field.
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


def check_searchable(session: Session, wrapper: Wrapper, model_name: str, subject: Subject, *, has_texts: bool) -> None:
    """Refuse a subject that no corpus of the model can be searched for: "nothing found" would be false.

    Raises:
        Invalid: Names the field.
    """
    check_subject(wrapper, subject)
    model = models.by_name(session, model_name)
    if model is None:
        return
    registered = corpora.of_model(session, model.id)
    if not registered:
        raise Invalid(
            "The model has no corpus in which to look anybody up. Submit the texts, or register its corpora.",
            field="subject",
            code="no_corpora",
        )
    indexed = {"email", "phone"}.union(*(corpus.columns.values() for corpus in registered))
    types = {identity["type"] for identity in subject["identities"]}
    if types and not (types & indexed or subject["names"] or has_texts):
        raise Invalid(
            "No corpus of the model has identifiers of this type: name the column that holds them.",
            field="subject.identities.0.type",
            code="type_not_indexed",
        )


def _hashes(hasher: Hasher, identity: Identity) -> list[int]:
    return hasher.identity(identity["type"], identity["format"], identity["value"])


def search(sources: "SearchableCorpora", subject: Subject) -> Matches:
    """Look a subject up in every corpus of a model.

    Raises:
        TooManyMatches: There are too many matches, or too many texts to compare.
        Unsearchable: As in `SearchableCorpora.searched`. Or a text has changed since it was indexed.
    """
    db, model_id, hasher = sources.db, sources.model_id, sources.hasher
    matches = Matches(searched=sources.searched)
    hashes = [number for identity in subject["identities"] for number in _hashes(hasher, identity)]
    if hashes:
        with db.reading() as session:
            matches.identifier = _refuse_too_many(corpora.by_identifiers(session, model_id, hashes))
    seen = {record.id for record in matches.identifier}
    for record in matches.identifier:
        _add_copies(matches, sources, record, seen)
    matches.share = sources.largest_share(matches.certain)
    phrases = [phrase for name in subject["names"] if (phrase := hasher.phrase(name))]
    if phrases:
        with db.reading() as session:
            named = corpora.by_phrases(session, model_id, phrases)
        matches.name = [record for record in named if record.id not in seen]
    return matches


def _refuse_too_many(records: list[CorpusRecord]) -> list[CorpusRecord]:
    if len(records) >= corpora.MAX_MATCHES:
        raise TooManyMatches
    return records


def _add_copies(matches: Matches, sources: "SearchableCorpora", record: CorpusRecord, seen: set[int]) -> None:
    """Add the near copies of a record that has an identifier, by how certain it is that they are about the person."""
    text = sources.text(record)
    shingles = near_copies.shingles(text)

    def near(candidates: list[CorpusRecord]) -> Iterator[tuple[CorpusRecord, str]]:
        for candidate in candidates:
            if candidate.id in seen:
                continue
            copy = sources.text(candidate)
            if near_copies.are_near_copies(shingles, near_copies.shingles(copy)):
                yield candidate, copy

    with sources.db.reading() as session:
        copies = _refuse_too_many(corpora.near_copies(session, sources.model_id, record))
        others = corpora.near_copies_of_others(session, sources.model_id, record)
    for candidate, copy in near(copies):
        (matches.similar if has_additional_words(copy, text) else matches.near_copy).append(candidate)
        seen.add(candidate.id)
    if len(others) < corpora.MAX_OTHERS:  # drop the copies in which another person's words replace this person's
        others = [
            other
            for other, copy in near(others)
            if not (has_additional_words(copy, text) and has_additional_words(text, copy))
        ]
    if len(others) > MANY_COPIES:
        matches.form_letters += len(others)
    else:
        matches.similar += others
        seen |= {other.id for other in others}


def read_records(sources: "SearchableCorpora", ids: list[int]) -> list[tuple[CorpusRecord, str]]:
    """Records by their ids, each with its text.

    Raises:
        Unsearchable: One of them does not exist any more, or its text has changed.
    """
    with sources.db.reading() as session:
        records = corpora.records(session, ids)
    if len(records) != len(set(ids)):
        raise Unsearchable("corpus_removed")
    return [(record, sources.text(record)) for record in records]


class SearchableCorpora:
    """The corpora of a model, and their files. No database connection is held while files are read."""

    def __init__(self, wrapper: Wrapper, roots: Roots, db: Database, model_id: UUID, *, max_texts: int) -> None:
        """Read the list of corpora, whose files lie in `roots`. No more than `max_texts` texts can be read."""
        self.db, self.model_id, self.hasher = db, model_id, Hasher(wrapper)
        self._texts_left = max_texts
        with db.reading() as session:
            self._corpora = {corpus.id: corpus for corpus in corpora.of_model(session, model_id)}
        self._roots, self._readers = roots, dict[UUID, CorpusReader]()

    @cached_property
    def searched(self) -> list[SearchedCorpus]:
        """The corpora, as `searched_corpora` lists them, after a check that each can be searched and read.

        Raises:
            Unsearchable: There is no corpus. Or one could not be indexed, cannot be reached, or has changed its size.
        """
        if not self._corpora:
            raise Unsearchable("no_corpora")
        for corpus in self._corpora.values():
            if corpus.state == "failed":
                raise Unsearchable(f"corpus_failed: {corpus.name}")
            try:
                unchanged = corpus.state != "ready" or self._reader(corpus).size() == corpus.size
            except OutsideRoots:
                raise Unsearchable(f"corpus_outside_roots: {corpus.name}") from None
            except OSError:
                raise Unsearchable(f"corpus_away: {corpus.name}") from None
            except UnreadableCorpus:
                unchanged = False
            if not unchanged:
                raise Unsearchable(f"corpus_changed: {corpus.name}")
        return searched_corpora(self._corpora.values())

    def largest_share(self, records: Iterable[CorpusRecord]) -> float:
        """The largest share of a corpus that these records are, of corpora with more than `FEW_MATCHES` of them."""
        counts = Counter(record.corpus_id for record in records)
        shares = [
            count / max(self._corpora[corpus_id].records, count)
            for corpus_id, count in counts.items()
            if count > FEW_MATCHES and corpus_id in self._corpora
        ]
        return max(shares, default=0)

    def text(self, record: CorpusRecord) -> str:
        """Read a record's text from its corpus.

        Raises:
            TooManyMatches: `max_texts` were read.
            Unsearchable: The text cannot be read, or is not the one that was indexed.
        """
        self._texts_left -= 1
        if self._texts_left < 0:
            raise TooManyMatches
        corpus = self._corpora.get(record.corpus_id)
        if corpus is None:
            raise Unsearchable("corpus_removed")
        try:
            text = self._reader(corpus).read(Place(record.file, record.start, record.length)).text
        except OutsideRoots:
            raise Unsearchable(f"corpus_outside_roots: {corpus.name}") from None
        except OSError:
            raise Unsearchable(f"corpus_away: {corpus.name}") from None
        except UnreadableCorpus:
            raise Unsearchable(f"corpus_changed: {corpus.name}") from None
        if self.hasher.number("text", text.encode()) != record.text_hash:
            raise Unsearchable(f"corpus_changed: {corpus.name}")
        return text

    def _reader(self, corpus: Corpus) -> CorpusReader:
        """The reader of a corpus, made once, because it lists the files of a folder."""
        if corpus.id not in self._readers:
            self._readers[corpus.id] = corpus_reader(self._roots, corpus)
        return self._readers[corpus.id]


def searched_corpora(registered: Iterable[Corpus]) -> list[SearchedCorpus]:
    """Each corpus with the number of its records and its state. Opens no file."""
    return [{"corpus": corpus.name, "records": corpus.records, "state": corpus.state} for corpus in registered]


def corpus_reader(roots: Roots, corpus: Corpus) -> CorpusReader:
    """The reader of a registered corpus.

    Raises:
        OutsideRoots: The corpus no longer lies in one of the roots.
    """
    root, path = roots.find(corpus.path)
    return CorpusReader(root, path, corpus.form, corpus.text_column)
