"""The home of the log: the one database in which it goes on.

PostgreSQL refuses every append elsewhere: in a standby that was promoted, a backup that was restored into another
cluster or database, or a copy. Such a database may lack entries that were signed. `reconcile` brings them back and
settles the log, before anything else is said in it. The old primary must be off: to itself it is at home still.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from sqlalchemy import ARRAY, Text, any_, bindparam, literal, select, text
from sqlalchemy.orm import Session

from service.audit.lost_entries import still_open
from service.db import log_entries
from service.db.log_tables import LogHome
from service.db.tables import DeletionRequest

SETTLED = text("SELECT home = database_home() FROM log_home")
SETTLE = text("SELECT log_settle(:entries, :lost)").bindparams(bindparam("lost", type_=ARRAY(Text)))


@dataclass(frozen=True, slots=True)
class Move:
    """A move of the log that no operator has seen.

    Attributes:
        at: When it was settled.
        brought_back: The entries of the log that the database had lost.
        lost: The refs of accepted requests that the database has lost.
    """

    at: datetime
    brought_back: int
    lost: list[str]


def is_settled(session: Session) -> bool:
    """Whether the log goes on in this database."""
    return bool(session.scalar(SETTLED))


def settle(session: Session, missing: Sequence[bytes], size: int) -> list[str] | None:
    """Let the log go on in this database, and append the signed entries that it lacks.

    Args:
        session: The transaction. It holds the log's lock from here on.
        missing: The entries.
        size: The number of entries before them.

    Returns:
        The refs of the requests that these entries accept and do not end, and that the database does not have. None,
        and nothing is done, if the log has another size by now: another process has settled it.
    """
    session.execute(log_entries.LOCK)
    if log_entries.size(session) != size:
        return None
    accepted = still_open(missing)
    among = DeletionRequest.ref == any_(literal(accepted, ARRAY(Text)))  # one parameter for any number of refs
    known = set(session.scalars(select(DeletionRequest.ref).where(among)))
    lost = [ref for ref in accepted if ref not in known]
    session.execute(SETTLE, {"entries": len(missing), "lost": lost})
    for entry in missing:
        log_entries.append_bytes(session, entry)
    return lost


def unseen_move(session: Session) -> Move | None:
    """The last move, if no operator has seen it."""
    home = session.scalars(select(LogHome)).one()
    return Move(home.moved_at, home.brought_back, home.lost) if home.moved_at else None


def note_seen(session: Session) -> None:
    """An operator has seen the move: requests that it lost have ended, without a result."""
    session.execute(log_entries.LOCK)
    move = unseen_move(session)
    session.execute(text("SELECT log_move_seen()"))
    for ref in move.lost if move else ():
        log_entries.append(session, "request.closed", ref=ref, reason="lost")


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that the log does not go on in this database."""
    return isinstance(getattr(error, "orig", error), psycopg.errors.ObjectNotInPrerequisiteState)
