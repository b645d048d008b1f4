"""A compute worker: a host that cannot confine its child, and looking for work without a message."""

import threading
from types import SimpleNamespace

import pytest

from service.local.process import wait_until
from worker import app, tasks
from worker.slots import Slots
from worker.steps.sandbox import Sandbox


def test_a_worker_that_must_confine_does_not_start_where_it_cannot(monkeypatch):
    """With `require` it ends and says what is missing; a control worker computes nothing, and starts."""
    monkeypatch.setattr(app, "host_sandbox", lambda: Sandbox(files=("setpriv",)))
    monkeypatch.setattr(app.settings, "compute_sandbox", "require")
    with pytest.raises(SystemExit, match="network"):
        app._check_compute_sandbox(sender="compute@host")
    app._check_compute_sandbox(sender="control@host")


@pytest.mark.parametrize(("mode", "lines"), [("auto", 3), ("off", 0)])
def test_a_worker_says_what_its_host_does_not_enforce(monkeypatch, caplog, mode, lines):
    """One line for each part that is missing, unless nobody asked for it."""
    monkeypatch.setattr(app, "host_sandbox", Sandbox)
    monkeypatch.setattr(app.settings, "compute_sandbox", mode)
    app._check_compute_sandbox(sender="compute@host")
    assert sum("not confined" in line for line in caplog.messages) == lines


@pytest.fixture
def compute_worker(monkeypatch):
    """A process that computes, with two slots and short times; afterwards as before."""
    monkeypatch.setattr(app.settings, "sweep_seconds", 0.01)
    monkeypatch.setattr(app, "get_services", object)
    monkeypatch.setattr(app, "slots", Slots())
    monkeypatch.setattr(app, "presence", SimpleNamespace(begin=lambda *_: None, end=lambda: None))
    monkeypatch.setattr(app, "lookers", [])
    monkeypatch.setattr(app, "stopping", threading.Event())
    monkeypatch.setattr(app, "computes", threading.Event())
    app.computes.set()
    yield SimpleNamespace(concurrency=2)
    app.stopping.set()


def test_each_slot_looks_for_work_until_the_worker_stops(compute_worker, monkeypatch):
    """Also after a look that failed; a worker that stops waits for the job in hand."""
    looks, may_end, ended = [], threading.Event(), []

    def compute(_) -> None:
        looks.append(threading.current_thread().name)
        if len(looks) == 1:
            raise RuntimeError("the database is away")
        if len(looks) > 4:
            may_end.wait(10)
            ended.append(threading.current_thread().name)

    monkeypatch.setattr(tasks, "compute", compute)
    app._look_for_work(sender=compute_worker)
    assert wait_until(lambda: len(looks) > 5, 10)
    assert set(looks) == {"slot-0", "slot-1"}
    with app.slots.free() as one, app.slots.free() as other, app.slots.free() as third:
        assert one is not None
        assert other is not None
        assert third is None
    app.stopping.set()
    threading.Timer(0.05, may_end.set).start()
    app._wait_for_jobs()
    assert len(ended) == 2
    assert not any(looker.is_alive() for looker in app.lookers)


def test_a_control_worker_looks_for_nothing(compute_worker):
    """It computes nothing."""
    app.computes.clear()
    app._look_for_work(sender=compute_worker)
    assert app.lookers == []
