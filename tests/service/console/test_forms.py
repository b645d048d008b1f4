"""Forms: only a page of the same session can send one, and its files stay in memory."""

import io
import itertools
import re
from uuid import UUID

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from service.console.routes import ROUTERS
from service.console.sign_in import parse_form
from service.db import api_keys
from service.domain.errors import Invalid
from tests.service.console.conftest import Browser

POSTS = sorted(
    route.path
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "POST" in route.methods and route.path != "/console/sign-in"
)
VALUES = {"action": "cancel", "name": "assistant", "corpus": "crm", "number": "0"}


def filled(path: str) -> str:
    """A path with values for its parameters."""
    return re.sub(r"{(\w+)}", lambda match: VALUES.get(match[1], str(UUID(int=1))), path)


def test_every_form_is_known():
    """A new form is among those that are attacked here."""
    assert len(POSTS) == 16


def test_no_form_without_the_token_of_its_session(browser, subtests):
    """Not without one, and not with another session's."""
    visitor, other = browser("admin"), browser("admin")
    for path, token in itertools.product(POSTS, ("", "0" * 64, other.token)):
        with subtests.test(path):
            answer = visitor.post(filled(path), data={"token": token})
            assert answer.status_code == 403
            assert "nothing was changed" in answer.text


def test_no_form_from_another_site(admin, new_key, subtests):
    """The browser says where a form comes from; the one for signing in is among them."""
    fields = {"token": admin.token, "api_key": new_key("admin")}
    for path, site in itertools.product([*POSTS, "/console/sign-in"], ("cross-site", "same-site")):
        with subtests.test(path, site=site):
            answer = admin.post(filled(path), data=fields, headers={"Sec-Fetch-Site": site}, follow_redirects=False)
            assert answer.status_code == 403
            assert "another site" in answer.text


def test_no_form_without_a_session(app, subtests):
    """It leads to the first page, because what was sent is lost."""
    stranger = Browser(app)
    for path in POSTS:
        with subtests.test(path):
            answer = stranger.post(filled(path), data={"token": ""}, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in?after=/console")


def test_a_form_changes_something_with_its_token(admin, services):
    """The counterpart: a form that is sent as it should be."""
    answer = admin.send_form("/console/settings/keys", name="a colleague", scope=["read", "submit"])
    assert "The key a colleague was made" in answer.text
    secret = re.search(r"unl_[\w-]{43}", answer.text)[0]
    with services.db.reading() as session:
        assert api_keys.find_caller(session, api_keys.hash_key(secret)).scopes == ["read", "submit"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)


@given(TEXTS, TEXTS)
def test_a_file_comes_through_as_it_was(text, other):
    """Any text, as a browser sends it."""
    request = httpx.Request("POST", "http://x", data={"field": other}, files={"file": io.BytesIO(text.encode())})
    form = parse_form(request.headers["content-type"], request.read())
    assert form["file"] == [text]
    assert form["field"] == [other]


MULTIPART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [("application/x-www-form-urlencoded", b"a=\xff"), ("multipart/form-data; boundary=x", MULTIPART)],
)
def test_what_is_no_form_is_refused(content_type, raw):
    """Bytes that are not UTF-8."""
    with pytest.raises(Invalid):
        parse_form(content_type, raw)
