"""Browsers without a screen: clients that are signed in, and send forms as pages hold them."""

import re

import pytest
from fastapi.testclient import TestClient

from service.main import create_app

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
def browser(app, new_key):
    """Make a browser that is signed in with these scopes."""

    def make(*scopes: str) -> Browser:
        return Browser(app, client=("127.0.0.1", 50_000)).sign_in(new_key(*scopes))

    return make


@pytest.fixture
def admin(browser) -> Browser:
    """A browser of an administrator."""
    return browser("admin")
