"""Old callbacks and events are deleted, some at a time; the record stays."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from service.db import old_rows
from service.db.tables import DeletionRequest, Job, JobEvent, Outbox
from service.steps.upkeep.forget import forget_old
from tests.service.conftest import REQUESTS
from tests.service.jobs import published

LONG_AGO = datetime.now(UTC) - timedelta(days=401)


def rows(services) -> tuple[int, int]:
    """How many callbacks and events there are."""
    with services.db.reading() as session:
        return tuple(session.scalar(select(func.count()).select_from(table)) for table in (Outbox, JobEvent))


def age(services, table, **columns) -> None:
    """Set columns of every row."""
    with services.db.transaction() as session:
        session.execute(update(table).values(**columns))


@pytest.fixture
def ended(api, services, model, as_process):
    """A fulfilled request with a callback that was delivered, all of it long ago."""
    request = published(api, services, "a record")
    with services.db.transaction() as session:
        session.add(Outbox(request_id=request["id"], status="completed", delivered_at=LONG_AGO))
    age(services, DeletionRequest, finished_at=LONG_AGO)
    age(services, Job, finished_at=LONG_AGO)
    assert min(rows(services)) > 0
    return request


def test_what_is_old_goes_by_the_login_of_control_and_the_record_stays(api, services, ended, as_process):
    """The request, its job and its version answer as before."""
    paths = [f"{REQUESTS}/{ended['id']}", f"/v1/jobs/{ended['job_id']}", "/v1/models/tiny/versions/1"]
    before = [api.get(path).json() for path in paths]
    assert forget_old(as_process("control")) > 0
    assert rows(services) == (0, 0)
    after = [api.get(path).json() for path in paths]
    assert before[1].pop("steps")
    assert after[1].pop("steps") == []  # the certificate has the epochs
    assert after == before
    assert forget_old(services) == 0


@pytest.mark.parametrize(
    ("table", "columns", "left"),
    [
        (Outbox, {"delivered_at": None}, (True, False)),
        (Outbox, {"delivered_at": datetime.now(UTC)}, (True, False)),
        (DeletionRequest, {"finished_at": None}, (True, False)),
        (Job, {"finished_at": None}, (False, True)),
    ],
)
def test_what_is_owed_open_or_young_stays(services, ended, table, columns, left):
    """A callback that waits, one of a request that is open again, the events of a job that goes on."""
    age(services, table, **columns)
    forget_old(services)
    assert tuple(count > 0 for count in rows(services)) == left


def test_each_transaction_deletes_a_few(services, ended, monkeypatch):
    """A worker that stops meanwhile has done a part, and the next one goes on."""
    monkeypatch.setattr(old_rows, "AT_ONCE", 2)
    before = rows(services)[1]
    answers = iter([False, True, False])  # callbacks, a batch of events, no further one
    assert forget_old(services, go_on=lambda: next(answers)) == 2
    assert rows(services)[1] == before - 2
    forget_old(services)
    assert rows(services) == (0, 0)
