"""Sign-in with OpenID Connect at a real provider, Canaille."""

import re
import socket
import subprocess
import sys
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.db import api_keys
from service.db.console_sessions import ConsoleSession
from service.local.process import wait_until
from service.main import create_app
from tests import ROOT
from tests.chromium import browser_at, needs_chromium
from tests.service.served import free_port, served

BACK = "http://testserver/console/sign-in/oidc/back"
PASSWORDS = {"jane": "a long password of Jane", "joe": "another one, of Joe"}


@pytest.fixture(scope="module")
def listener():
    """The socket on which the service is served to a real browser: the provider has to know its address before."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        yield own


def address(listener: socket.socket) -> str:
    """The URL at a socket."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def provider(listener):
    """A running provider with two users, one of whom is in the group `privacy`; its issuer."""
    port = free_port()
    back = [BACK, urljoin(address(listener), urlsplit(BACK).path)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.service.console.provider", str(port), *back]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/.well-known/openid-configuration", trust_env=False).is_success
        except httpx.TransportError:
            return False

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(answers, 60)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def with_provider(services, provider):
    """The services of a service at which people sign in with the provider."""
    settings = {"oidc_issuer": provider, "oidc_client_id": "console", "oidc_roles": {"privacy": ["read", "approve"]}}
    update = {**settings, "oidc_client_secret": type(services.settings.alert_secret)("a secret")}
    services.settings = services.settings.model_copy(update=update)
    return services


@pytest.fixture
def visitor(with_provider):
    """A browser of that service."""
    with TestClient(create_app(with_provider), follow_redirects=False) as client:
        yield client


def at_the_provider(url: str, name: str) -> str:
    """Sign in at the provider's own pages; the address to which it sends the browser back."""
    with httpx.Client(base_url=f"http://{urlsplit(url).netloc}", trust_env=False, timeout=60) as browser:
        answer = browser.get(url)
        for value in ("", name, PASSWORDS[name], ""):
            if value:
                token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', answer.text)[1]
                field = "login" if 'name="login"' in answer.text else "password"
                answer = browser.post(answer.url, data={field: value, "csrf_token": token})
            while answer.is_redirect and not answer.headers["location"].startswith(BACK):
                answer = browser.get(answer.headers["location"])
        return answer.headers["location"]


def begin(visitor, after: str = "/console/jobs") -> str:
    """Begin to sign in; the provider's address."""
    assert "Sign in with your organisation" in visitor.get("/console").text
    answer = visitor.get(f"/console/sign-in/oidc?after={after}")
    assert answer.status_code == 303
    return answer.headers["location"]


def test_somebody_in_a_group_comes_in_with_its_scopes(visitor, services):
    """The session has the scopes of the group; the page after it is the one that was asked for."""
    url = begin(visitor)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    answer = visitor.get(at_the_provider(url, "jane"))
    assert answer.status_code == 200, answer.text
    assert 'content="0; url=/console/jobs"' in answer.text
    page = visitor.get("/console/settings").text
    assert "see all requests, jobs and versions" in page
    assert "everything" not in page
    assert visitor.get("/console/jobs").status_code == 200
    with services.db.transaction() as session:
        (row,) = session.scalars(select(ConsoleSession))
        assert row.scopes == ["approve", "read"]
        api_keys.revoke(session, row.api_key_id)
    assert visitor.get("/console/jobs").status_code == 303
    refused = visitor.get(at_the_provider(begin(visitor), "jane"))
    assert (refused.status_code, "shut out" in refused.text) == (403, True)


def test_somebody_in_no_group_stays_outside(visitor, services):
    """No session begins, and no key is made."""
    answer = visitor.get(at_the_provider(begin(visitor), "joe"))
    assert answer.status_code == 403
    assert "You are in no group" in answer.text
    with services.db.reading() as session:
        assert list(session.scalars(select(ConsoleSession))) == []
        assert all("oidc" not in key.name for key in api_keys.listing(session))


def test_a_sign_in_that_was_begun_elsewhere_is_refused(visitor, services):
    """Another browser's code, a code without a sign-in, a code that was used, another state: none begins a session."""
    back = at_the_provider(begin(visitor), "jane")
    cookie = dict(visitor.cookies)
    visitor.cookies.clear()
    assert visitor.get(back).status_code == 403
    begin(visitor)
    assert visitor.get(back).status_code == 403  # the state is of another sign-in
    visitor.cookies.clear()
    visitor.cookies.update(cookie)
    assert visitor.get(f"{BACK}?error=access_denied&state=x").status_code == 403
    assert visitor.get(back).status_code == 200
    visitor.cookies.clear()
    visitor.cookies.update(cookie)
    assert visitor.get(back).status_code == 403  # the code was used
    with services.db.reading() as session:
        assert len(list(session.scalars(select(ConsoleSession)))) == 1


def test_a_code_needs_the_nonce_of_its_sign_in(visitor):
    """Whoever replaces the nonce in the cookie gets no session."""
    back = at_the_provider(begin(visitor), "jane")
    state, _, *rest = visitor.cookies["unlearnd_oidc"].strip('"').split("|")
    visitor.cookies.clear()
    visitor.cookies.set("unlearnd_oidc", "|".join([state, "another", *rest]))
    answer = visitor.get(back)
    assert (answer.status_code, "another sign-in" in answer.text) == (403, True)


def test_a_provider_that_is_away_is_said_to_be(visitor, services):
    """And API keys may be forbidden: then there is no form for them."""
    services.settings = services.settings.model_copy(
        update={"oidc_issuer": "http://127.0.0.1:1", "console_api_keys": False}
    )
    assert visitor.get("/console/sign-in/oidc").status_code == 503
    assert 'name="api_key"' not in visitor.get("/console").text
    assert visitor.post("/console/sign-in", data={"api_key": "unl_x"}).status_code == 403


def test_without_a_provider_there_is_no_such_way(app):
    """Neither a link nor a page."""
    client = TestClient(app)
    assert "your organisation" not in client.get("/console").text
    assert client.get("/console/sign-in/oidc").status_code == 404


@needs_chromium
def test_somebody_signs_in_with_a_real_browser(with_provider, provider, listener):
    """At the provider's own pages; on the way back a page says so, and leads on by itself."""
    own = address(listener)
    with served(with_provider, listener, request_seconds=30, max_connections=200), browser_at(own) as tab:
        tab.open("/console/jobs")
        assert tab.violations() == []
        tab.page.get_by_role("link", name="Sign in with your organisation").click()
        tab.page.locator("[name=login]").fill("jane")
        tab.page.locator("[name=login]").press("Enter")
        tab.page.route("**/console/jobs", lambda route: route.abort("aborted"))  # to look at the page in between
        tab.page.locator("[name=password]").fill(PASSWORDS["jane"])
        tab.page.locator("[name=password]").press("Enter")
        tab.page.get_by_role("heading", name="You are signed in").wait_for()
        assert tab.violations() == []
        tab.page.unroute("**/console/jobs")
        tab.page.get_by_role("link", name="Go on").click()
        tab.page.get_by_role("heading", name="Jobs").wait_for()
        assert tab.page.url == f"{own}/console/jobs"
        ours = [problem for problem in tab.problems if problem.startswith(own) and provider not in problem]
        assert [problem for problem in ours if "ERR_ABORTED" not in problem] == []  # what the test itself refused
