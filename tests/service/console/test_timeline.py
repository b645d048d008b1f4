"""What pages say of the past, and of what would come of a decision."""

import re
from datetime import timedelta

from sqlalchemy import func, update

from service.console.timeline import job_steps, request_steps
from service.db import outbox
from service.db.outbox import Outcome
from service.db.tables import DeletionRequest, Job, Outbox
from service.steps.upkeep.deliver import deliver_callbacks
from tests.service.conftest import submit
from tests.service.jobs import fail_what_waits, plant_callback_given_up, publish_what_waits, published
from tests.status_door import planting

URL = "/v1/deletion-requests"
CALLBACK = "http://127.0.0.1:65000/cb"


def whats(page: str) -> list[str]:
    """The steps of the timeline on a page."""
    (shown,) = re.findall(r'<ol class="timeline">(.*?)</ol>', page, re.DOTALL)
    return re.findall(r"<strong>(.*?)</strong>", shown)


def test_a_request_says_what_happened_until_its_submitter_was_told(admin, api, services, model):
    """In order; a callback that is still to come, or was given up, stands at the end."""
    request = submit(api, callback_url=CALLBACK)
    publish_what_waits(services)
    path = f"/console/requests/{request['id']}"
    before = [
        "The controller received it",
        "This service accepted it",
        "A job took it",
        "A worker began",
        "Training ended",
        "The test of the changed model began",
        "The test ended",
        "The record was signed",
        "It ended",
    ]
    end = "told: Completed"
    assert whats(admin.get(path).text) == [*before, f"The submitter&#39;s system is still to be {end}"]
    plant_callback_given_up(services)
    assert whats(admin.get(path).text) == [*before, f"The submitter&#39;s system was not {end}"]
    with services.db.transaction() as session:
        session.execute(update(Outbox).values(next_at=func.now()))
    with services.db.transaction() as session:
        entry = outbox.claim_due(session, timedelta(seconds=20))
        outbox.store_attempt(session, entry.id, Outcome.DELIVERED, 10)
    assert whats(admin.get(path).text) == [*before, f"The submitter&#39;s system was {end}"]


def test_what_nobody_had_to_be_told_is_not_shown_as_told(api, services, model):
    """It is done with, and was not sent."""
    request = submit(api, callback_url=CALLBACK)
    api.delete(f"{URL}/{request['id']}")
    with services.db.transaction() as session:
        entry = outbox.claim_due(session, timedelta(seconds=20))
        assert outbox.store_attempt(session, entry.id, Outcome.NOT_SENT, 10) == []
    assert api.get(f"{URL}/{request['id']}").json()["callbacks"] == []
    with services.db.transaction() as session:
        assert outbox.claim_due(session, timedelta(seconds=20)) is None


def test_who_could_not_be_told_any_more_is_shown_as_not_told(api, services, model):
    """The address was purged with the request."""
    request = submit(api, callback_url=CALLBACK)
    api.delete(f"{URL}/{request['id']}")
    with planting(), services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(wrapped_key=None, callback_url=None))
    assert deliver_callbacks(services) == 0
    (callback,) = api.get(f"{URL}/{request['id']}").json()["callbacks"]
    assert (callback["delivered_at"], callback["given_up"]) == (None, True)


def test_no_reason_is_given_for_somebody(admin, api, services, model):
    """What is chosen first says nothing, or is no choice: a click gives no reason that nobody meant."""
    waiting = submit(api)["id"]
    pages = [admin.get(f"/console/requests/{waiting}").text]
    fail_what_waits(services)
    pages.append(admin.get(f"/console/requests/{waiting}").text)
    selects = [select for page in pages for select in re.findall(r"<select[^>]*reason.*?</select>", page, re.DOTALL)]
    assert len(selects) == 4
    for select in selects:
        assert re.search(r"<option[^>]*>", select)[0] == '<option value="">', select
    admin.send_form(f"/console/requests/{waiting}/retry", reason="")
    assert api.get(f"{URL}/{waiting}").json()["status"] == "pending"


def test_a_job_says_which_attempts_it_took():
    """With their reasons in words, and codes that have none as they are."""
    at = "2026-11-28T07:00:00Z"
    steps = [
        {"kind": "stage", "at": at, "stage": "unlearn", "outcome": None, "reason": None},
        {"kind": "retry", "at": at, "stage": None, "outcome": None, "reason": "child_killed"},
        {"kind": "done", "at": at, "stage": None, "outcome": "quarantined", "reason": "x"},
    ]
    shown = [(step["what"], step["more"]) for step in job_steps({"steps": steps})]
    assert shown[0] == ("Unlearn", "")
    assert shown[1][0] == "An attempt ended, and the job is tried again"
    assert "too little memory" in shown[1][1]
    assert shown[2] == ("The job ended: quarantined", "The reason is x.")


def test_a_search_and_a_decision_stand_in_the_timeline(api, model):
    """The reason of a decision is a sentence."""
    request = api.get(f"{URL}/{submit(api)['id']}").json()
    decision = {"decision": "approved", "name": "a person", "reason": "person_confirmed", "at": request["accepted_at"]}
    request |= {"searched_at": request["accepted_at"], "decisions": [decision]}
    shown = {step["what"]: step["more"] for step in request_steps(request, None)}
    assert shown["The person was looked up in the training data"] == ""
    assert shown["Approved by a person"] == "The person has confirmed that the texts are theirs."


def test_a_job_that_waited_took_a_request_when_it_came(api, model):
    """Not before the request was there."""
    request = api.get(f"{URL}/{submit(api)['id']}").json()
    job = {"id": "j", "parent": 0, "stage": "queued", "progress": 0, "steps": [], "started_at": None}
    job |= {"created_at": "2020-01-01T00:00:00Z", "finished_at": None}
    shown = [step["what"] for step in request_steps(request, job)]
    assert shown.index("This service accepted it") < shown.index("A job took it")


def test_a_withdrawal_says_what_it_costs_before_it_is_asked_for(admin, api, services, model):
    """Requests that would be open again are counted; the only version has no form; what is purged forbids it."""
    for text in ("first", "second"):
        published(api, services, text)
    path = f"/console/models/{model}/versions"
    assert "What it would cost" in admin.get(f"{path}/2").text
    pages = {number: admin.get(f"{path}/{number}?withdraw=true").text for number in (0, 1, 2)}
    assert "Version 1 is then the newest." in pages[2]
    assert "1 completed request becomes open again, 0 of them past its deadline." in pages[2]
    assert "No completed request becomes open again." in pages[1]
    assert ('name="reopen"' in pages[2], 'name="reopen"' in pages[1]) == (True, False)
    refused = admin.send_form(f"{path}/2/withdraw", reason="faulty", reopen="yes", cost="0")  # the page is older
    assert (refused.status_code, "It would cost more than the page said before" in refused.text) == (409, True)
    assert "Withdrawn on" in admin.send_form(f"{path}/2/withdraw", reason="faulty", reopen="yes", cost="1").text
    admin.send_form(f"{path}/1/withdraw", reason="faulty", reopen="yes", cost="1")
    last = admin.get(f"{path}/0?withdraw=true").text
    assert "no other version is handed out" in last
    assert 'name="reason"' not in last


def test_any_two_versions_are_compared_by_a_form(admin, api, services, model):
    """The form leads to the page of both."""
    published(api, services, "first")
    assert 'name="other" type="number" min="0" value="1"' in admin.get(f"/console/models/{model}").text
    answer = admin.get(f"/console/models/{model}/compare", params={"one": 1, "other": 0})
    assert answer.url.path == f"/console/models/{model}/compare/1/0"
    assert answer.status_code == 200


def test_a_backlog_stands_beside_its_deadlines(admin, api, services, model):
    """On the first page and on the model's: a plot, and its table by day."""
    submit(api)
    fail_what_waits(services)  # a job that has ended says the rate
    with planting(), services.db.transaction() as session:
        session.execute(update(Job).values(stage="done", finished_at=func.now()))
        session.execute(update(Job).values(started_at=func.now() - timedelta(days=100)))
    for _ in range(2):
        submit(api)
    first, own = admin.get("/console").text, admin.get(f"/console/models/{model}").text
    assert f"Deadlines of {model}" in first
    for page in (first, own):
        assert "due by then" in page
        assert "dealt with by then" in page
    assert "2 will be late." in own
    assert re.search(r'<th scope="row">[^<]+</th><td>2</td><td class="late">2</td>', own)


def test_settings_are_listed_for_administrators_without_secrets(browser, services):
    """As `unlearnd settings` lists them."""
    services.settings.fides_url = "https://a-user:swordfish@fides.example.org"
    page = browser("admin").get("/console/settings").text
    assert "UNLEARND_CALLBACK_ALLOW_PRIVATE" in page
    assert "UNLEARND_TRANSCEND_API_KEY" in page
    assert services.settings.database_url not in page
    assert "swordfish" not in page
    for name in services.settings.model_fields_set:
        assert f"UNLEARND_{name.upper()}" in page
    assert "UNLEARND_CALLBACK_ALLOW_PRIVATE" not in browser("read", "approve", "audit").get("/console/settings").text
