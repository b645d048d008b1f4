"""The state table is the only door to a status; every test on `services` watches for another."""

from uuid import uuid4

import pytest
from sqlalchemy import text, update
from sqlalchemy.dialects.postgresql import insert

from service.db import jobs, requests
from service.db.tables import DeletionRequest, Job
from service.domain.errors import IllegalTransition
from service.domain.states import RESTORE_TRANSITIONS, RequestStatus, Stage
from tests.status_door import BypassedTable

BYPASSES = {
    "a flushed attribute": lambda session, row, column, value: setattr(row, column, value) or session.flush(),
    "an UPDATE": lambda session, row, column, value: session.execute(
        update(type(row)).where(type(row).id == row.id).values({column: value})
    ),
    "an UPDATE of every row": lambda session, row, column, value: session.execute(
        update(type(row)).values({column: value})
    ),
    "a guard that the table does not list": lambda session, row, column, value: session.execute(
        update(type(row)).where(getattr(type(row), column) == value).values({column: getattr(row, column)})
    ),
    "an UPDATE by hand": lambda session, row, column, value: session.execute(
        text(f'WITH w AS (UPDATE public."{row.__tablename__}" SET {column} = :new RETURNING id) SELECT * FROM w'),
        {"new": value},
    ),
    "an upsert": lambda session, row, column, value: session.execute(
        insert(type(row)).values(id=row.id).on_conflict_do_update(index_elements=["id"], set_={column: value})
    ),
    "a row that begins at its end": lambda session, row, column, value: session.execute(
        insert(type(row)).values({"id": uuid4(), column: value})
    ),
}


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize(
    ("table", "column", "value"), [(DeletionRequest, "status", "completed"), (Job, "stage", "done")]
)
def test_a_write_past_the_table_is_noticed(services, job, bypass, table, column, value):
    """The watch sees what SQLAlchemy emits, so that no way of writing it escapes."""
    request, job_id = job
    with pytest.raises(BypassedTable), services.db.transaction() as session:
        row = session.get(table, request["id"] if table is DeletionRequest else job_id)
        BYPASSES[bypass](session, row, column, value)


def test_the_door_refuses_what_the_table_does_not_list(services, job):
    """Nothing is written; the restore's table lists other moves than the usual one."""
    request, job_id = job
    with pytest.raises(IllegalTransition), services.db.transaction() as session:
        requests.move(session, [requests.by_id(session, request["id"], lock=True)], RequestStatus.COMPLETED)
    with pytest.raises(IllegalTransition), services.db.transaction() as session:
        jobs.advance(session, session.get(Job, job_id), Stage.PUBLISH)
    with services.db.transaction() as session:
        row = requests.by_id(session, request["id"], lock=True)
        assert row.status == RequestStatus.BATCHED
        requests.move(session, [row], RequestStatus.COMPLETED, table=RESTORE_TRANSITIONS, job_id=None)
        assert (row.status, row.job_id) == (RequestStatus.COMPLETED, None)


def test_the_door_refuses_a_row_that_has_moved(services, job):
    """Whoever read a row without locking it does not write over what another transaction decided."""
    request, _ = job
    with services.db.reading() as session:
        stale = requests.by_id(session, request["id"])
    with services.db.transaction() as session:
        requests.move(session, [requests.by_id(session, request["id"], lock=True)], RequestStatus.UNLEARNING)
    with pytest.raises(IllegalTransition), services.db.transaction() as session:
        requests.move(session, [stale], RequestStatus.UNLEARNING)
