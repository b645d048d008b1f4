"""Models and their versions."""

from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db.paging import Page, page
from service.db.tables import Certificate, Model, Version


def by_name(session: Session, name: str) -> Model | None:
    """The model of that name."""
    return session.scalar(select(Model).where(Model.name == name))


def lock(session: Session, model_id: UUID) -> Model | None:
    """The model, locked for this transaction; None if another one holds it."""
    return session.scalar(select(Model).where(Model.id == model_id).with_for_update(skip_locked=True))


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


def set_latest(session: Session, model_id: UUID, number: int) -> None:
    """Move the `latest` alias."""
    session.execute(update(Model).where(Model.id == model_id).values(latest=number))


def digests(session: Session) -> set[str]:
    """The folder names of all versions."""
    return set(session.scalars(select(Version.digest)))


def certificate(session: Session, job_id: UUID | None) -> Certificate | None:
    """The record of a job."""
    return session.get(Certificate, job_id) if job_id else None
