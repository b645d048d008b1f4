"""Sessions: how they begin, what they are good for, and when they end."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from service.db import api_keys
from service.db.console_sessions import ConsoleSession
from service.main import create_app
from tests.service.console.conftest import Browser

COOKIE = "unlearnd_session"


def sessions(services) -> list[ConsoleSession]:
    """The rows of all sessions."""
    with services.db.reading() as session:
        return list(session.scalars(select(ConsoleSession)))


def test_the_first_page_is_a_form_with_an_api_key(app):
    """Without a redirect, so that a simple client finds it, too."""
    visitor = Browser(app)
    assert visitor.get("/", follow_redirects=False).headers["location"] == "/console"
    answer = visitor.get("/console")
    assert answer.status_code == 200
    assert '<input id="api_key" name="api_key" type="password" required' in answer.text
    assert "Sign out" not in answer.text


def test_other_pages_lead_to_the_form_and_back(app, new_key):
    """The page that was asked for comes after the form."""
    visitor = Browser(app)
    answer = visitor.get("/console/settings", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in?after=/console/settings")
    form = {"api_key": new_key("read"), "after": "/console/settings"}
    answer = visitor.post("/console/sign-in", data=form)
    assert answer.url.path == "/console/settings"


@pytest.mark.parametrize(
    "after", ["https://example.org", "//example.org", "/v1/models", "/consoles", "javascript:1", ""]
)
def test_nobody_is_led_elsewhere(app, new_key, after):
    """What comes after the form is a page of the console."""
    form = {"api_key": new_key("read"), "after": after}
    answer = Browser(app).post("/console/sign-in", data=form, follow_redirects=False)
    assert answer.headers["location"] == "/console"


@pytest.mark.parametrize("key", ["", "unl_" + "x" * 43, "ключ"])
def test_a_wrong_key_begins_no_session(app, services, key):
    """And the answer does not repeat it."""
    answer = Browser(app).post("/console/sign-in", data={"api_key": key})
    assert answer.status_code == 401
    assert "unknown or revoked" in answer.text
    assert COOKIE not in answer.cookies
    assert not key or key not in answer.text
    assert sessions(services) == []


@pytest.mark.parametrize(("public_url", "secure"), [("", False), ("https://unlearnd.example.org", True)])
def test_a_script_or_another_site_cannot_use_the_cookie(services, new_key, public_url, secure):
    """Its attributes; behind TLS it is for TLS alone."""
    services.settings = services.settings.model_copy(update={"public_url": public_url})
    with TestClient(create_app(services)) as visitor:
        answer = visitor.post("/console/sign-in", data={"api_key": new_key("read")}, follow_redirects=False)
    parts = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/console", "Max-Age=28800"} <= set(parts)
    assert ("Secure" in parts) == secure


def test_the_database_holds_a_hash_of_the_cookie(admin, services):
    """Who reads the database cannot sign in with it."""
    (row,) = sessions(services)
    assert row.digest == hashlib.sha256(admin.cookies[COOKIE].encode()).digest()
    assert row.expires_at - datetime.now(UTC) <= timedelta(seconds=services.settings.console_seconds)


def test_signing_out_ends_the_session(admin, services):
    """Not only in this browser: the cookie is worth nothing."""
    cookie = admin.cookies[COOKIE]
    assert admin.send_form("/console/sign-out").url.path == "/console/sign-in"
    assert sessions(services) == []
    assert "api_key" in admin.get("/console", headers={"Cookie": f"{COOKIE}={cookie}"}).text


def test_a_session_ends_by_itself_and_is_removed(admin, services, new_key, app):
    """The next sign-in removes it."""
    with services.db.transaction() as session:
        session.execute(update(ConsoleSession).values(expires_at=datetime.now(UTC)))
    assert admin.get("/console/settings").url.path == "/console/sign-in"
    Browser(app).sign_in(new_key("read"))
    assert len(sessions(services)) == 1


def test_a_revoked_key_ends_its_sessions_at_once(browser, services):
    """With the next page."""
    visitor = browser("read")
    assert visitor.get("/console/jobs").url.path == "/console/jobs"
    with services.db.transaction() as session:
        (row,) = session.scalars(select(ConsoleSession))
        api_keys.revoke(session, row.api_key_id)
    assert visitor.get("/console/jobs").url.path == "/console/sign-in"


def test_one_signs_out_everywhere_and_an_administrator_anybody(app, services, new_key, admin):
    """Nobody else can end another's sessions."""
    key = new_key("read")
    first, second = Browser(app).sign_in(key), Browser(app).sign_in(key)
    with services.db.reading() as session:
        other, own = (api_keys.find_caller(session, api_keys.hash_key(k)).id for k in (key, key))
        others = [row.api_key_id for row in session.scalars(select(ConsoleSession)) if row.api_key_id != other]
    assert first.send_form(f"/console/settings/keys/{others[0]}/sign-out").status_code == 403
    assert admin.get("/console/jobs").url.path == "/console/jobs"
    first.send_form(f"/console/settings/keys/{own}/sign-out")
    assert second.get("/console/jobs").url.path == "/console/sign-in"
    second.sign_in(key)
    admin.send_form(f"/console/settings/keys/{other}/sign-out")
    assert second.get("/console/jobs").url.path == "/console/sign-in"


def test_cookie_and_key_are_for_their_own_doors(admin, app, new_key):
    """A stolen cookie opens no API, and a key in a header no page."""
    assert admin.get("/v1/models").status_code == 401
    key = {"Authorization": f"Bearer {new_key('admin')}"}
    assert Browser(app).get("/console/settings", headers=key).url.path == "/console/sign-in"


def test_there_may_be_no_console(services):
    """A setting leaves it out."""
    services.settings = services.settings.model_copy(update={"console": False})
    with TestClient(create_app(services)) as visitor:
        assert [visitor.get(path).status_code for path in ("/", "/console", "/console/sign-in")] == [200, 404, 404]


def test_a_link_from_elsewhere_signs_nobody_out(app):
    """A browser sends no `SameSite=Strict` cookie with it, and would believe an answer that deletes it."""
    visitor = Browser(app)
    for path in ("/console", "/console/jobs", "/console/jobs?model=tiny"):
        answer = visitor.get(path, follow_redirects=False)
        assert "set-cookie" not in answer.headers
    assert answer.headers["location"] == "/console/sign-in?after=/console/jobs%3Fmodel%3Dtiny"
