"""Browsers without a screen: clients that are signed in, and send forms as pages hold them."""

import re

import pytest
from fastapi.testclient import TestClient

from service.main import create_app
from tests.service.conftest import submit
from tests.service.jobs import fail_what_waits, publish_what_waits
from tests.service.served import served

REFERENCE, TEXT = "Case 7 of J. Doe", "Jane Doe lives at 12 Sample Street."
TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


class Browser(TestClient):
    """A client that remembers the token of its session."""

    token = ""

    def sign_in(self, key: str) -> "Browser":
        """Sign in by the form."""
        answer = self.post("/console/sign-in", data={"api_key": key}, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        self.token = TOKEN.search(self.get("/console/settings").text)[1]
        return self

    def send_form(self, path: str, *, files: object = None, **fields: object):
        """Send a form of this session."""
        return self.post(path, data={"token": self.token, **fields}, files=files)


@pytest.fixture
def app(services):
    """The application, with its lifespan."""
    application = create_app(services)
    with TestClient(application):
        yield application


@pytest.fixture
def address(services):
    """The application on a real socket."""
    with served(services, request_seconds=30, max_connections=200) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def browser(app, new_key):
    """Make a browser that is signed in with these scopes."""

    def make(*scopes: str) -> Browser:
        return Browser(app, client=("127.0.0.1", 50_000)).sign_in(new_key(*scopes))

    return make


@pytest.fixture
def admin(browser) -> Browser:
    """A browser of an administrator."""
    return browser("admin")


@pytest.fixture
def pages(api, services, model) -> dict[str, str]:
    """Name -> path of a page of each kind, where there is something to see."""
    published = submit(api, reference=REFERENCE, records=[{"text": TEXT}])
    publish_what_waits(services)
    failed = submit(api)
    failed_job = fail_what_waits(services, "utility_budget_exceeded")
    waiting = submit(api)
    job = api.get(f"/v1/deletion-requests/{published['id']}").json()["job_id"]
    return {
        "today": "/console",
        "health": "/console/health",
        "requests": "/console/requests",
        "filtered": "/console/requests?status=failed&model=tiny&regulation=gdpr&received_from=2026-01-01&owed=true",
        "completed": f"/console/requests/{published['id']}",
        "failed": f"/console/requests/{failed['id']}",
        "waiting": f"/console/requests/{waiting['id']}",
        "new": "/console/requests/new",
        "decisions": "/console/decisions",
        "jobs": "/console/jobs?model=tiny&stage=done",
        "job": f"/console/jobs/{job}",
        "failed job": f"/console/jobs/{failed_job}",
        "models": "/console/models",
        "model": "/console/models/tiny",
        "version": "/console/models/tiny/versions/1",
        "compare": "/console/models/tiny/compare/0/1",
        "records": "/console/records",
        "record": f"/console/records/{job}",
        "failed record": f"/console/records/{failed_job}",
        "report": "/console/records/report?begins=2026-01-01&ends=2027-01-01",
        "letter": f"/console/records/letter/{published['id']}",
        "settings": "/console/settings",
    }
