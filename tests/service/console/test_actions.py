"""Every form in a real Chromium, with the mouse at a desk and with the keyboard alone at a telephone's width."""

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import APIRoute

from service.console.requests import Action
from service.console.routes import ROUTERS
from service.steps.path.batch import batch_requests
from tests.chromium import DESK, PHONE, Tab, browser_at, needs_chromium
from tests.service.conftest import only_model, registration, submit
from tests.service.console.conftest import REFERENCE
from tests.service.jobs import fail_what_waits, published

pytestmark = needs_chromium
ACTIONS = {"requests": get_args(Action), "jobs": ("cancel", "retry")}
VALUES = {"name": "tiny", "corpus": "crm", "number": "1"}


def forms() -> set[str]:
    """The path of every form, `*` for each id."""
    paths = set()
    for route in (route for router in ROUTERS for route in router.routes):
        if isinstance(route, APIRoute) and "POST" in route.methods:
            path = re.sub(r"{(\w+)}", lambda match: VALUES.get(match[1], "*"), route.path.replace("{action}", "?"))
            paths |= {path.replace("?", action) for action in ACTIONS[path.split("/")[2]]} if "?" in path else {path}
    return paths


class Console:
    """The console in a browser; it remembers which forms were sent and went through."""

    def __init__(self, tab: Tab, *, has_mouse: bool) -> None:
        """Use the mouse, or the keyboard alone."""
        self.tab, self.page, self._has_mouse = tab, tab.page, has_mouse
        self.sent: set[str] = set()  # paths, `*` for each id
        self.page.on("response", self._note)

    def _note(self, response) -> None:
        if response.request.method == "POST" and response.status < 400:
            self.sent.add(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "*", response.url.removeprefix(self.tab.url)))

    def press(self, role: str, name: str | re.Pattern, exact: bool = False) -> None:
        """Press a button or follow a link, and wait for the page that comes."""
        target = self.page.get_by_role(role, name=name, exact=exact).first
        with self.page.expect_navigation():
            self._activate(target)

    def _activate(self, target, key: str = "Enter") -> None:
        """Click, or focus and press a key."""
        if self._has_mouse:
            target.click()
        else:
            target.focus()
            self.page.keyboard.press(key)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option."""
        if self._has_mouse:
            self.page.locator(selector).select_option(value)
            return
        self.page.locator(selector).focus()
        for _ in range(10):
            if self.page.locator(selector).input_value() == value:
                return
            self.page.keyboard.press("ArrowDown")
        raise AssertionError(f"{selector} has no {value}")

    def check(self, label: str | re.Pattern) -> None:
        """Tick a box."""
        box = self.page.get_by_role("checkbox", name=label)
        self._activate(box, "Space")
        assert box.is_checked()

    def unfold(self, words: str) -> None:
        """Open what is folded away."""
        self._activate(self.page.locator("summary", has_text=words))

    def badge(self) -> str:
        """The status on the page of a request."""
        return self.page.locator(".badge").first.inner_text()

    def assert_accessible(self) -> None:
        """The page that a form leads to has no violation either."""
        assert self.tab.violations() == []


@pytest.fixture(params=[pytest.param("mouse", marks=pytest.mark.slow), "keyboard"])
def console(request, address):
    """The console, before anybody has signed in."""
    has_mouse = request.param == "mouse"
    with browser_at(address, viewport=DESK if has_mouse else PHONE) as tab:
        yield Console(tab, has_mouse=has_mouse)
        assert tab.problems == []


@contextmanager
def approvals(api, count: int):
    """A policy with so many approvals, for the requests that are submitted meanwhile."""
    for needed in (count, 0):
        model = api.get("/v1/models/tiny").json()
        body = {"policy": model["policy"] | {"approvals": needed}, "policy_version": model["policy_version"]}
        assert api.put("/v1/models/tiny/policy", json=body).is_success
        if needed:
            yield


def test_every_form_is_sent_from_its_page(console, api, services, base, new_key, tmp_path):
    """And what it does is seen on the page after it. No form is left out: a new one has to be added here."""
    key = new_key("admin")
    console.tab.sign_in(key)
    (tmp_path / "crm.jsonl").write_text('{"text": "a text", "email": "person@example.org"}\n')
    register_and_change(console, base, tmp_path / "crm.jsonl")
    requests_in(console)
    amend(console, api, services)
    decide(console, api)
    jobs_and_versions(console, api, services)
    keys(console, key)
    assert console.sent == forms()


def register_and_change(console: Console, base: Path, corpus: Path) -> None:
    """Register a model and a corpus, change the policy, remove the corpus."""
    page = console.page
    console.tab.open("/console/models")
    body = registration(base)
    for field in ("name", "path", "retain_path", "heldout_path"):
        page.locator(f"#{field}").fill(body[field])
    page.locator("#policy").fill(json.dumps(body["policy"]))
    console.press("button", "Register")
    page.get_by_role("heading", name="tiny", level=1).wait_for()
    console.unfold("Register a corpus")
    form = page.locator("form[action$='/corpora']")
    for field, value in (("corpus", "crm"), ("path", str(corpus)), ("email", "email")):
        form.locator(f"#{field}").fill(value)
    console.press("button", "Register", exact=True)
    assert page.get_by_role("row").filter(has_text="crm").count() == 1
    console.press("button", "Remove crm")
    page.get_by_text("None is registered").wait_for()
    page.locator("#policy").fill('{"max_wait_seconds": 0, "max_epochs": 7}')
    console.press("button", "Show what would change")
    assert "max_epochs" in page.get_by_role("main").inner_text()
    console.assert_accessible()
    console.press("button", "Set this policy")
    assert "max_epochs 20 → 7" in page.get_by_role("main").inner_text()


def requests_in(console: Console) -> None:
    """Submit one request by the form and two by a file, and find one of them again."""
    page = console.page
    console.tab.open("/console/requests/new")
    console.choose("#regulation", "ccpa")
    page.locator("#reference").fill(REFERENCE)
    page.locator("#text").fill("a text of one person")
    console.press("button", "Submit", exact=True)
    page.get_by_role("heading", name="The request was accepted").wait_for()
    console.assert_accessible()
    console.tab.open("/console/requests/new")
    rows = {"name": "people.csv", "mimeType": "text/csv", "buffer": b"text,reference\na text,K-1\n,K-2\nanother,K-3\n"}
    page.locator("#file").set_input_files(rows)
    console.press("button", "Look at the rows")
    assert "2 can be submitted; 1 cannot" in page.get_by_role("main").inner_text()
    console.assert_accessible()
    console.press("button", "Submit 2 requests")
    page.get_by_role("heading", name="2 requests were accepted").wait_for()
    console.tab.open("/console/requests")
    page.locator("#reference").fill(REFERENCE)
    console.press("button", "Find")
    page.get_by_role("heading", name=REFERENCE).wait_for()
    assert REFERENCE not in page.url
    assert "CCPA" in page.get_by_role("main").inner_text()


def amend(console: Console, api, services) -> None:
    """Extend a request and cancel it; retry a failed one; resolve one and purge it."""
    console.choose("#extend-reason", "number_of_requests")
    console.press("button", "Extend once")
    assert "extended: number of requests" in console.page.get_by_role("main").inner_text()
    console.choose("#cancel-reason", "mistake")
    console.press("button", "Cancel the request")
    assert console.badge() == "Cancelled"
    assert "It was submitted by mistake." in console.page.get_by_role("main").inner_text()
    for _ in range(3):  # both, and then each of them alone
        fail_what_waits(services, "utility_budget_exceeded")
    first, second = (item["id"] for item in api.get("/v1/deletion-requests?status=failed").json()["items"])
    console.tab.open(f"/console/requests/{first}")
    console.choose("#retry-reason", "policy_changed")
    console.press("button", "Try again")
    assert console.badge() == "Waiting"
    console.tab.open(f"/console/requests/{second}")
    console.choose("#resolve-reason", "not_covered")
    console.press("button", "Resolve")
    assert "Resolved by an operator" in console.page.get_by_role("main").inner_text()
    console.press("button", "Purge its texts now")
    assert "purged" in console.page.locator("dl.facts").inner_text()


def decide(console: Console, api) -> None:
    """Approve a request of somebody else with a reason, and reject another one."""
    submitter = api.post("/v1/api-keys", json={"name": "tool", "scopes": ["submit"]}).json()["key"]
    headers = {"Authorization": f"Bearer {submitter}"}
    with approvals(api, 1):
        for reference in ("A-1", "A-2"):
            submit(api, headers=headers, reference=reference)
    console.tab.open("/console/decisions")
    console.press("link", re.compile("^[0-9a-f]{12}$|A-1"))
    console.assert_accessible()
    console.choose("#approve-reason", "person_confirmed")
    console.press("button", "Approve the chosen texts")
    assert "The person has confirmed" in console.page.get_by_role("main").inner_text()
    console.tab.open("/console/decisions")
    console.press("link", re.compile("^[0-9a-f]{12}$|A-2"))
    console.choose("#reject-reason", "identity_not_proven")
    console.press("button", "Reject")
    assert console.badge() == "Rejected"


def jobs_and_versions(console: Console, api, services) -> None:
    """Cancel a job and retry it; compare two versions, and withdraw the newest."""
    job = batch_requests(services, only_model(services))
    console.tab.open(f"/console/jobs/{job}")
    console.assert_accessible()  # it has not ended
    console.press("button", "Cancel the job")
    console.page.get_by_text("The job was given up.").wait_for()
    console.press("button", "Try its failed requests again")
    published(api, services, "of a version")
    console.tab.open("/console/models/tiny")
    console.press("button", "Compare")
    console.page.get_by_role("heading", name="version 0 beside version 1").wait_for()
    console.tab.open("/console/models/tiny/versions/1")
    console.press("link", "What it would cost")
    console.assert_accessible()
    console.choose("[name=reason]", "superseded")
    console.check(re.compile("also if completed requests"))
    console.press("button", "Withdraw")
    assert "Withdrawn on" in console.page.get_by_role("main").inner_text()


def keys(console: Console, key: str) -> None:
    """Make a key, once what is missing was said; sign its browsers out, revoke it; sign out, and everywhere."""
    page, tab = console.page, console.tab
    tab.open("/console/settings")
    console.press("button", "Make the key")  # without a name
    assert page.get_by_role("alert").is_visible()
    console.assert_accessible()
    assert "422" in tab.problems.pop()  # the browser notes it
    page.locator("#name").fill("a colleague")
    console.check(re.compile("^read:"))
    console.press("button", "Make the key")
    assert page.get_by_label("API key", exact=True).input_value().startswith("unl_")
    console.assert_accessible()
    console.press("button", "Sign a colleague out")
    console.press("button", "Revoke a colleague")
    assert page.get_by_role("button", name="Revoke a colleague").count() == 0
    console.press("button", "Sign out", exact=True)
    tab.sign_in(key)
    tab.open("/console/settings")
    console.press("button", "Sign out everywhere")
    page.get_by_role("heading", name="Sign in").wait_for()
