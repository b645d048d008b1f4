"""Models and their versions."""

from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from service.db.paging import Page, page
from service.db.tables import Certificate, Download, Model, Version

COLLECTION = 7310581  # the advisory lock between publishing and collecting


def by_name(session: Session, name: str, *, lock: bool = False) -> Model | None:
    """The model of that name, locked if asked for."""
    query = select(Model).where(Model.name == name)
    return session.scalar(query.with_for_update(key_share=True) if lock else query)


def lock(session: Session, model_id: UUID) -> Model | None:
    """The model, locked for this transaction; None if another one holds it.

    FOR NO KEY UPDATE: whoever accepts a request meanwhile holds the log's lock and then looks at the model's key.
    """
    query = select(Model).where(Model.id == model_id)
    return session.scalar(query.with_for_update(key_share=True, skip_locked=True))


def listing(session: Session, cursor: str | None, limit: int) -> Page[Model]:
    """Models by name."""
    return page(session, select(Model), Model.name, str, cursor, limit)


def version(session: Session, model: Model, number: int) -> Version | None:
    """One version of a model."""
    return session.scalar(select(Version).where(Version.model_id == model.id, Version.number == number))


def versions(session: Session, model: Model, cursor: str | None, limit: int) -> Page[Version]:
    """Versions of a model, newest first."""
    query = select(Version).where(Version.model_id == model.id)
    return page(session, query, Version.number, int, cursor, limit, descending=True)


def newest_version(session: Session, model: Model) -> Version | None:
    """The newest version that was not withdrawn."""
    query = select(Version).where(Version.model_id == model.id, Version.withdrawn_at.is_(None))
    return session.scalar(query.order_by(Version.number.desc()).limit(1))


def by_commit(session: Session, model: Model, commit: str) -> Version | None:
    """The version whose manifest's digest begins so."""
    query = select(Version).where(Version.model_id == model.id, Version.digest.startswith(commit, autoescape=True))
    return session.scalar(query.limit(1))


def superseded(session: Session, model: Model, after: int, limit: int) -> list[tuple[Version, str]]:
    """Versions that superseded one at or after number `after`, oldest first, with their certificates' digests."""
    query = select(Version, Certificate.digest).join(Certificate, Certificate.job_id == Version.job_id)
    query = query.where(Version.model_id == model.id, Version.number > after).order_by(Version.number).limit(limit)
    return [(version, digest) for version, digest in session.execute(query)]


def note_download(session: Session, version: Version, api_key_id: UUID) -> None:
    """Enter an API key into the register of a version, once."""
    values = {"version_id": version.id, "api_key_id": api_key_id}
    session.execute(insert(Download).values(**values).on_conflict_do_nothing())


def downloads(session: Session, version: Version) -> list[Download]:
    """The register of a version, oldest first."""
    query = select(Download).options(joinedload(Download.api_key)).where(Download.version_id == version.id)
    return list(session.scalars(query.order_by(Download.first_at)))


def set_latest(session: Session, model_id: UUID, number: int) -> None:
    """Move the `latest` alias."""
    session.execute(update(Model).where(Model.id == model_id).values(latest=number))


def known_digests(session: Session, among: list[str]) -> set[str]:
    """Those of these folder names that belong to a version."""
    return set(session.scalars(select(Version.digest).where(Version.digest.in_(among))))


def block_collection(session: Session) -> None:
    """Until this transaction ends, no folder is collected: what a new version names is there, or is seen to be gone."""
    session.execute(select(func.pg_advisory_xact_lock_shared(COLLECTION)))


def lock_collection(session: Session) -> None:
    """Wait until no version is being made, and let none be made until this transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(COLLECTION)))


def reference_text_digests(session: Session) -> set[str]:
    """Digests of all retain and held-out texts in use."""
    rows = session.execute(select(Model.retain["sha256"].astext, Model.heldout["sha256"].astext))
    return {digest for row in rows for digest in row}


def published(session: Session) -> dict[tuple[str, int], str]:
    """(model, number) -> digest of every version but the registered ones."""
    query = select(Model.name, Version.number, Version.digest).join(Model, Model.id == Version.model_id)
    return {(name, number): digest for name, number, digest in session.execute(query.where(Version.number > 0))}


def latest_versions(session: Session, limit: int) -> list[tuple[str, Version]]:
    """(model, its newest version) of the first models by name."""
    query = select(Model.name, Version).join(Version, (Version.model_id == Model.id) & (Version.number == Model.latest))
    return [(name, version) for name, version in session.execute(query.order_by(Model.name).limit(limit))]


def certificate(session: Session, job_id: UUID | None) -> Certificate | None:
    """The record of a job."""
    return session.get(Certificate, job_id) if job_id else None
