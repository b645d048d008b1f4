"""The access log has a line for each request, and nothing of what was sent."""

import io
import logging
import re
import subprocess
import sys
from datetime import datetime

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client import generate_latest

from service.api import access_log
from service.api.health import metrics_registry
from service.local.process import wait_until
from service.main import create_app
from service.observability.logging import FIELDS, configure
from tests.service.conftest import REQUESTS
from tests.service.served import environment, free_port

SECRET = "Zoraida"


@pytest.fixture
def lines(api, monkeypatch):
    """The lines that requests write, without their times."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    configure("INFO")
    written = io.StringIO()
    monkeypatch.setattr(root.handlers[0], "stream", written)

    def read(*, whole: bool = False) -> list[str]:
        assert wait_until(lambda: "logger=service.access" in written.getvalue(), 10)  # those of a moment come together
        access = [line for line in written.getvalue().splitlines() if "logger=service.access" in line]
        return access if whole else [re.sub(r" ms=\d+", "", line.partition("event=")[2]) for line in access]

    yield read
    root.handlers[:] = kept
    root.setLevel(level)


def test_a_request_is_one_line(api, lines, services):
    """With the route's template and the caller's key; the path is not there."""
    with services.db.reading() as session:
        key = session.connection().exec_driver_sql("SELECT id FROM api_keys").scalar()
    assert api.get(f"{REQUESTS}/{SECRET}", params={"q": SECRET}).status_code == 422
    (line,) = lines()
    assert line == f"request method=GET route=/v1/deletion-requests/{{request_id}} http_status=422 key={key}"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/livez", "request method=GET route=/livez http_status=200"),
        ("GET", f"/{SECRET}?{SECRET}", "request method=GET http_status=404"),
        (SECRET, "/livez", "request route=/livez http_status=405"),
    ],
)
def test_what_a_caller_makes_up_is_not_written(api, lines, method, path, expected):
    """Neither a path that is no route of ours, nor a method that is none."""
    del api.headers["Authorization"]
    api.request(method, path)
    assert lines() == [expected]


def test_what_the_limits_refuse_is_logged(api, lines, services):
    """A body over the limit, by its route."""
    body = b"x" * (services.settings.max_body_bytes + 1)
    assert api.post(REQUESTS, content=body, headers={"Content-Type": "application/json"}).status_code == 413
    (line,) = lines()
    assert line.startswith("request method=POST route=/v1/deletion-requests http_status=413")


def test_a_request_that_fails_is_logged(api, lines):
    """With the status that the caller gets."""

    @api.app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError):
        api.get("/broken")
    assert lines() == ["request method=GET route=/broken http_status=500"]


def test_a_line_has_the_form_of_the_others(api, lines):
    """A reader of logfmt reads it: the same names in the same order, no value with quotes or blanks."""
    api.get("/livez")
    (line,) = lines(whole=True)
    pairs = [pair.split("=") for pair in line.split()]
    names = [name for name, _ in pairs]
    assert names == ["timestamp", "level", "logger", "event", "method", "route", "http_status", "ms"]
    assert datetime.fromisoformat(pairs[0][1]).tzinfo is not None
    assert names == [name for name in FIELDS if name in names]


def test_the_last_lines_are_written_when_the_server_ends(services, monkeypatch):
    """It does not wait for the moment in which they would be written together."""
    monkeypatch.setattr(access_log, "WRITE_SECONDS", 3600)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure("INFO")
    written = io.StringIO()
    monkeypatch.setattr(root.handlers[0], "stream", written)
    with TestClient(create_app(services)) as client:
        client.get("/livez")
        assert "route=/livez" not in written.getvalue()
    assert "route=/livez" in written.getvalue()


def test_the_access_log_can_be_switched_off(services, monkeypatch):
    """By its setting; requests are counted all the same."""
    services.settings.access_log = False
    written: list[str] = []
    monkeypatch.setattr(access_log, "write_lines", written.append)
    before = counted(services)
    with TestClient(create_app(services)) as client:
        client.get("/livez")
    assert written == []
    assert counted(services) == before + 1


def counted(services) -> float:
    """How many answers of `/livez` were counted."""
    labels = {"method": "GET", "route": "/livez", "status": "2xx"}
    return metrics_registry(services).get_sample_value("unlearnd_http_seconds_count", labels) or 0


def test_what_a_caller_makes_up_is_no_label(api, services):
    """No route, no method: metrics hold the service's own words."""
    api.request(SECRET, f"/{SECRET}?{SECRET}")
    shown = generate_latest(metrics_registry(services)).decode()
    assert SECRET not in shown
    assert 'method="other",route="none",status="4xx"' in shown


def test_several_processes_are_counted_together(services):
    """Each answer of `/metrics` has the requests of all of them, whichever gives it."""
    command = [sys.executable, "-m", "service.main", "--port", str(port := free_port()), "--processes", "2"]
    with subprocess.Popen(command, env=environment(services), stderr=subprocess.DEVNULL) as group:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                assert wait_until(lambda: answers(client), 60)
            for _ in range(20):  # connections of their own: the kernel gives them to one process or the other
                assert httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False, timeout=60).is_success
            shown = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
        finally:
            group.terminate()
    (line,) = re.findall(r'unlearnd_http_seconds_count{.*route="/livez".*} (\S+)', shown)
    assert float(line) >= 20


def answers(client: httpx.Client) -> bool:
    """Whether the server answers."""
    try:
        return client.get("/livez").is_success
    except httpx.TransportError:
        return False
