"""Every page: who may see it, what is on it, and what is never on it."""

import re

from service.db.api_keys import SCOPES
from service.steps.upkeep.recheck import begin_rechecks, finish_rechecks
from tests.service.console.conftest import REFERENCE, TEXT
from tests.service.steps.upkeep.test_recheck import age, measure

OUTSIDE = re.compile(r"""(?:src|href|action)=["'](?!/|#|data:)""")
HANDLERS = re.compile(r"<(?:[^>]*\s)(?:style|on\w+)=|<style|<script(?![^>]*\ssrc=)|javascript:", re.IGNORECASE)


SAYS = {
    "today": ["failed and owed", "Failed, and still owed", "Requests by deadline"],
    "completed": ["Completed", "Version 1 fulfils it.", "the record", REFERENCE, "A letter to the person"],
    "failed": ["Failed", "would have lost too much of its general ability", "Try again", "Resolve"],
    "waiting": ["Cancel the request", "Extend once"],
    "failed job": ["utility_budget_exceeded", "The record of this job"],
    "model": ["handed out", "superseded", "Show what would change"],
    "version": ["Withdraw it", "model/model.safetensors", "unlearnd verify DIR"],
    "record": ["Version 1 was published, and replaces version 0", REFERENCE, "in time", "Check it yourself"],
    "failed record": ["no version was published", "Why: The model would have lost too much"],
    "report": ["received 3 deletion requests", "A new version of the model was published", "Failed requests by reason"],
    "letter": ["to delete what our language model tiny", "No test can show that nothing of a text is left"],
    "settings": ["API keys, without their secrets", "Sign out everywhere"],
}


def test_every_page_says_what_it_is_for(admin, pages):
    """And holds nothing that a strict policy refuses, nothing from elsewhere, and no text of a request."""
    for name, path in pages.items():
        answer = admin.get(path)
        assert answer.status_code == 200, (name, answer.text)
        for words in SAYS.get(name, ()):
            assert words in answer.text, (name, words)
        assert not OUTSIDE.search(answer.text), name
        assert not HANDLERS.search(answer.text), name
        assert TEXT not in answer.text, name
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy, name
        assert policy.startswith("default-src 'none'"), name
        assert answer.headers["cache-control"] == "no-store", name


def test_a_title_and_an_address_tell_nothing_of_a_person(admin, pages):
    """They stay in a browser's history. A case number may name somebody."""
    for name, path in pages.items():
        title = re.search(r"<title>(.*?)</title>", admin.get(path).text)
        assert title, name
        assert REFERENCE not in title[1], name
    answer = admin.send_form("/console/requests/find", reference=REFERENCE)
    assert answer.url.path == pages["completed"]
    assert not answer.url.query
    assert "No request is like this." in admin.send_form("/console/requests/find", reference="another").text


SEES_REQUESTS = {"requests", "filtered", "completed", "failed", "waiting", "letter", "decisions"}
SEES_JOBS = {"jobs", "job", "failed job", "records", "record", "failed record", "today", "report"}
SEES_MODELS = {"models", "model", "version", "compare"}
MAY_SEE = {  # scope -> what it may see; everybody may see settings
    "submit": {"requests", "filtered", "new", "decisions", "jobs", "records", *SEES_MODELS},
    "read": {*SEES_REQUESTS, *SEES_JOBS, *SEES_MODELS},
    "approve": SEES_REQUESTS | SEES_JOBS,
    "audit": SEES_JOBS,
    "preview": set(),
    "download": {"version", "compare"},
}


def test_a_page_shows_what_the_key_may_see(browser, pages, subtests):
    """Another page says that it may not, and never fails."""
    for scope, names in MAY_SEE.items():
        visitor = browser(scope)
        for name, path in pages.items():
            with subtests.test(name, scope=scope):
                answer = visitor.get(path, follow_redirects=name != "today")
                assert (answer.status_code == 200) == (name in names | {"settings"}), answer.text
                assert answer.status_code in (200, 303, 403, 404), answer.text


def test_a_menu_has_only_what_the_key_may_see(browser, pages):
    """Nobody is led to a page that refuses him."""
    for scope in SCOPES:
        visitor = browser(scope)
        menu = re.findall(r'<li><a href="(/console[^"]*)"', visitor.get("/console/settings").text)
        assert menu, scope
        assert {visitor.get(path).status_code for path in menu} == {200}, scope


def test_buttons_are_for_those_who_may_press_them(browser, pages):
    """And the API refuses whoever presses one without."""
    visitor = browser("read")
    for name in ("failed", "waiting", "model", "version", "settings"):
        forms = re.findall(r'<form method="post" action="([^"]*)"', visitor.get(pages[name]).text)
        assert all("sign-out" in action for action in forms), name
    for path in (f"{pages['failed']}/retry", f"{pages['waiting']}/cancel", f"{pages['version']}/withdraw"):
        answer = visitor.send_form(path, reason="faulty")
        assert answer.status_code == 403
        assert "This needs the scope" in answer.text
    assert visitor.send_form("/console/settings/keys", name="x", scope="admin").status_code == 403


def test_what_is_not_there_is_a_page_too(admin):
    """An error is a page, with the menu on it."""
    for path in ("/console/nowhere", "/console/models/none", "/console/requests/nothing"):
        answer = admin.get(path)
        assert answer.status_code in (404, 422)
        assert "Sign out" in answer.text


def test_the_first_page_is_light(admin, pages):
    """Everything that a browser loads for it, before compression."""
    page = admin.get("/console").text
    files = re.findall(r'(?:src|href)="(/console/static/[^"]+)"', page)
    answers = {path: admin.get(path) for path in set(files)}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert all("immutable" in answer.headers["cache-control"] for answer in answers.values())
    assert len(page.encode()) + sum(len(answer.content) for answer in answers.values()) < 100_000
    assert admin.get("/console/static/0000000000000000/console.css").status_code == 404


def test_a_model_says_when_all_was_measured_last_and_a_request_that_it_came_back(admin, services, pages):
    """While it goes on, how far it is."""
    assert "none yet" in admin.get(pages["model"]).text
    age(services, 31)
    begin_rechecks(services)
    assert "0 of 1 parts are measured" in admin.get(pages["model"]).text
    measure(services, back=1)
    finish_rechecks(services)
    shown = admin.get(pages["model"]).text
    assert "1 of 1 earlier requests measured in full" in shown
    assert "1 came back and is pending again" in shown
    assert "A recheck found that a version remembers it again." in admin.get(pages["completed"]).text
