"""Queries on models and their versions."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import Select, case, func, select, update
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session, joinedload

from service.db.history_tables import Download, PolicyVersion
from service.db.paging import Page, page
from service.db.tables import Certificate, DeletionRequest, Model, Version
from service.domain.errors import NotFound
from service.domain.json_types import JsonObject
from service.domain.reference_texts import Overlap
from service.domain.states import RequestStatus

COLLECTION = 7310581  # the advisory lock between publishing and collecting


def by_name(session: Session, name: str, *, lock: bool = False) -> Model | None:
    """The model with this name, locked if `lock`."""
    query = select(Model).where(Model.name == name)
    return session.scalar(query.with_for_update(key_share=True) if lock else query)


def existing(session: Session, name: str, *, lock: bool = False) -> Model:
    """The model with this name, locked if `lock`.

    Raises:
        NotFound: There is none.
    """
    model = by_name(session, name, lock=lock)
    if model is None:
        raise NotFound("There is no model of that name.")
    return model


def by_id(session: Session, model_id: UUID) -> Model:
    """The model with this id, which exists."""
    return session.get_one(Model, model_id)


def lock(session: Session, model_id: UUID) -> Model | None:
    """The model, locked for this transaction; None if another transaction holds the lock.

    FOR NO KEY UPDATE: a transaction that accepts a request holds the log's lock and then reads the model's key.
    """
    query = select(Model).where(Model.id == model_id)
    return session.scalar(query.with_for_update(key_share=True, skip_locked=True))


def listing(session: Session, cursor: str | None, limit: int) -> Page[Model]:
    """A page of models, by name."""
    return page(session, select(Model), Model.name, str, cursor, limit)


def version(session: Session, model: Model, number: int) -> Version | None:
    """The version of a model with this number."""
    return session.scalar(select(Version).where(Version.model_id == model.id, Version.number == number))


def next_number(session: Session, model_id: UUID) -> int:
    """The number of a model's next version. A number is used once, also if its version was withdrawn."""
    return (session.scalar(select(func.max(Version.number)).where(Version.model_id == model_id)) or 0) + 1


def handed_out_from(session: Session, model_ids: Collection[UUID]) -> dict[UUID, int]:
    """Model -> the number from which on its versions are for everybody: those before know what a later one forgot.

    What a version had forgotten counts also after a recheck has found that it came back.
    """
    request = DeletionRequest
    last = select(func.max(request.version)).where(request.model_id == Model.id, request.version.is_not(None))
    last = last.where(request.status == RequestStatus.COMPLETED)
    back = select(func.max(request.came_back_from)).where(request.model_id == Model.id)
    back = back.where(request.came_back_from.is_not(None))
    serves_all = Model.policy["serve_superseded"].as_boolean().is_(True)
    newest = func.least(func.greatest(last.scalar_subquery(), back.scalar_subquery()), Model.latest)
    first = case((serves_all, 0), else_=func.coalesce(newest, 0))
    query = select(Model.id, first).where(Model.id.in_(model_ids))
    return {row[0]: row[1] for row in session.execute(query)}


def any_withdrawn(session: Session, model_id: UUID, first: int, last: int) -> bool:
    """Whether one of a model's versions with these numbers, both included, was withdrawn."""
    query = select(Version.id).where(Version.model_id == model_id, Version.number.between(first, last))
    return session.scalar(select(query.where(Version.withdrawn_at.is_not(None)).exists())) is True


def versions(session: Session, model: Model, cursor: str | None, limit: int) -> Page[Version]:
    """A page of a model's versions, newest first."""
    query = select(Version).where(Version.model_id == model.id)
    return page(session, query, Version.number, int, cursor, limit, descending=True)


def add_policy(session: Session, model: Model, policy: JsonObject, number: int, api_key_id: UUID) -> None:
    """Put a policy into force as the one with this number."""
    model.policy, model.policy_version = policy, number
    session.add(PolicyVersion(model_id=model.id, number=number, policy=policy, api_key_id=api_key_id))


def policies(session: Session, model: Model, cursor: str | None, limit: int) -> Page[PolicyVersion]:
    """A page of all policies that a model had, newest first."""
    query = select(PolicyVersion).where(PolicyVersion.model_id == model.id)
    return page(session, query, PolicyVersion.number, int, cursor, limit, descending=True)


def newest_version(session: Session, model: Model, *, without: Version | None = None) -> Version | None:
    """The newest version that is not withdrawn; `without` one that is about to be."""
    query = _remaining(model)
    if without is not None:
        query = query.where(Version.id != without.id)
    return session.scalar(query.limit(1))


def by_commit(session: Session, model: Model, commit: str) -> Version | None:
    """The version whose digest begins with `commit`."""
    query = select(Version).where(Version.model_id == model.id, Version.digest.startswith(commit, autoescape=True))
    return session.scalar(query.limit(1))


def remaining_versions(session: Session, model: Model) -> list[Version]:
    """Every version of a model that is not withdrawn, newest first."""
    return list(session.scalars(_remaining(model)))


def all_versions(session: Session, model: Model) -> list[Version]:
    """Every version of a model, oldest first."""
    return list(session.scalars(select(Version).where(Version.model_id == model.id).order_by(Version.number)))


def all_ids(session: Session) -> list[UUID]:
    """Every model."""
    return list(session.scalars(select(Model.id)))


def _remaining(model: Model) -> Select[Version]:
    query = select(Version).where(Version.model_id == model.id, Version.withdrawn_at.is_(None))
    return query.order_by(Version.number.desc())


def newest_versions(session: Session, *, search: str, after: str, limit: int) -> list[tuple[str, Version]]:
    """The newest version of each model that is not withdrawn, with the models' names, by name.

    Args:
        session: The transaction.
        search: A part of the model's name.
        after: The name after which the list begins.
        limit: The most models.
    """
    query = select(Model.name, Version).join(Version, Version.model_id == Model.id)
    query = query.where(Version.withdrawn_at.is_(None))
    query = query.where(Model.name > after, Model.name.contains(search, autoescape=True))
    query = query.ext(distinct_on(Model.name)).order_by(Model.name, Version.number.desc()).limit(limit)
    return [(name, version) for name, version in session.execute(query)]


def superseded(session: Session, model: Model, after: int, limit: int) -> list[tuple[Version, str]]:
    """Versions with a number above `after`, oldest first, each with the digest of its certificate."""
    query = select(Version, Certificate.digest).join(Certificate, Certificate.job_id == Version.job_id)
    query = query.where(Version.model_id == model.id, Version.number > after).order_by(Version.number).limit(limit)
    return [(version, digest) for version, digest in session.execute(query)]


def note_download(session: Session, version: Version, api_key_id: UUID) -> None:
    """Add an API key to the download register of a version, once."""
    values = {"version_id": version.id, "api_key_id": api_key_id}
    session.execute(insert(Download).values(**values).on_conflict_do_nothing())


def downloads(session: Session, version: Version) -> list[Download]:
    """The download register of a version, oldest first."""
    query = select(Download).options(joinedload(Download.api_key)).where(Download.version_id == version.id)
    return list(session.scalars(query.order_by(Download.first_at)))


def store_overlap(session: Session, model_id: UUID, overlap: Overlap) -> None:
    """Store how many held-out texts of a model are also retain texts."""
    model = session.get_one(Model, model_id)
    model.heldout = {**model.heldout, "overlap": overlap}


def set_latest(session: Session, model_id: UUID, number: int) -> None:
    """Set the version that `latest` means."""
    session.execute(update(Model).where(Model.id == model_id).values(latest=number))


def known_digests(session: Session, among: list[str]) -> set[str]:
    """The folder names among these that belong to a version, or to a model's base."""
    queries = (select(digest).where(digest.in_(among)) for digest in (Version.digest, Model.base))
    return {digest for query in queries for digest in session.scalars(query) if digest is not None}


def block_collection(session: Session) -> None:
    """Keep the collector out until this transaction ends: a folder that exists now is still there at commit."""
    session.execute(select(func.pg_advisory_xact_lock_shared(COLLECTION)))


def lock_collection(session: Session) -> None:
    """Wait for transactions that make a version, and keep new ones out until this transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(COLLECTION)))


def reference_text_digests(session: Session) -> set[str]:
    """The digests of all reference texts in use."""
    rows = session.execute(select(Model.retain, Model.heldout, Model.neighbours))
    return {texts["sha256"] for retain, heldout, sets in rows for texts in (retain, heldout, *sets.values())}


def published(session: Session) -> dict[tuple[str, int], str]:
    """(model, number) -> digest of every published version; version 0 is registered, not published."""
    query = select(Model.name, Version.number, Version.digest).join(Model, Model.id == Version.model_id)
    return {(name, number): digest for name, number, digest in session.execute(query.where(Version.number > 0))}


def withdrawn(session: Session) -> dict[tuple[str, int], str]:
    """(model, number) -> reason of every withdrawn version."""
    query = select(Model.name, Version.number, Version.withdrawn_reason).join(Model, Model.id == Version.model_id)
    rows = session.execute(query.where(Version.withdrawn_at.is_not(None)))
    return {(name, number): reason or "" for name, number, reason in rows}


def latest_versions(session: Session, limit: int) -> list[tuple[str, Version]]:
    """(model name, latest version) of the first models, by name."""
    query = select(Model.name, Version).join(Version, (Version.model_id == Model.id) & (Version.number == Model.latest))
    return [(name, version) for name, version in session.execute(query.order_by(Model.name).limit(limit))]


def certificate(session: Session, job_id: UUID | None) -> Certificate | None:
    """The certificate of a job."""
    return session.get(Certificate, job_id) if job_id else None
