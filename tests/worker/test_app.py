"""A compute worker on a host that cannot confine its child."""

import pytest

from worker import app
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
