"""What one does with requests on pages: submit, look at rows, cancel, extend, resolve."""

import base64
import json
import re
from uuid import UUID

import pytest

from service.db import requests
from service.domain.states import RequestStatus
from service.privacy.records import open_records
from tests.service.conftest import submit
from tests.service.jobs import fail_what_waits

URL = "/v1/deletion-requests"
CSV = "text,reference,received_at\nA first text,K-1,2026-11-20\nA second text,K-2,\n"


def receipts(page: str) -> list[dict]:
    """The receipts on a page."""
    shown = re.search(r'<textarea id="receipts"[^>]*>(.*?)</textarea>', page, re.DOTALL)[1]
    return [json.loads(line.replace("&#34;", '"')) for line in shown.splitlines()]


def test_a_form_makes_a_request(admin, api, model):
    """Sent twice, it makes one; its page shows the receipt."""
    key = re.search(r'name="key" value="(\w+)"', admin.get("/console/requests/new").text)[1]
    fields = {"model": model, "text": "a text", "reference": "K-9", "regulation": "ccpa", "received_at": "2026-11-20"}
    pages = [admin.send_form("/console/requests/new", key=key, **fields).text for _ in range(2)]
    (first,), (second,) = map(receipts, pages)
    assert first["id"] == second["id"]
    request = api.get(f"{URL}/{first['id']}").json()
    assert (request["reference"], request["regulation"]) == ("K-9", "ccpa")
    assert request["received_at"].startswith("2026-11-20T00:00:00")
    assert first["receipt"]["ref"] == request["ref"]


def test_a_form_that_is_not_valid_comes_back_as_it_was(admin, api, model):
    """With what is wrong, in a place that a screen reader reads first."""
    answer = admin.send_form("/console/requests/new", model=model, reference="K-9", regulation="gdpr")
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "records: " in answer.text
    assert 'value="K-9"' in answer.text
    assert api.get(URL).json()["items"] == []


def test_rows_are_looked_at_before_they_are_submitted(admin, api, model):
    """The page says what is wrong with each row; nothing is stored before the second form, and that makes each once."""
    file = CSV + "\n,K-3,\n a text, K-4, the day before\n"
    page = admin.send_form("/console/requests/rows", files={"file": ("people.csv", file)}, model=model).text
    assert "2 can be submitted; 2 cannot" in page
    assert "records: records are needed, or a subject" in page
    assert "received_at: " in page
    assert api.get(URL).json()["items"] == []
    pages = [
        admin.send_form("/console/requests/rows/submit", model=model, csv=base64.b64encode(file.encode()).decode()).text
        for _ in range(2)
    ]
    assert [r["id"] for r in receipts(pages[0])] == [r["id"] for r in receipts(pages[1])]
    assert sorted(item["reference"] for item in api.get(URL).json()["items"]) == ["K-1", "K-2"]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("mail\nx@example.org\n", "column 1 must be one of"),
        ("text\n", "there is no row"),
        ("text\na,b\n", "more cells"),
    ],
)
def test_a_file_of_another_form_is_refused(admin, model, file, problem):
    """With the row or the column, and never with a value."""
    answer = admin.send_form("/console/requests/rows", files={"file": ("people.csv", file)}, model=model)
    assert answer.status_code == 422
    assert problem in answer.text
    assert "x@example.org" not in answer.text


def test_the_list_has_filters(admin, api, model):
    """Each leaves out what it should."""
    submit(api, reference="old", received_at="2026-11-01T00:00:00Z")
    submit(api, reference="new", regulation="ccpa")
    for query, shown in {
        "": {"old", "new"},
        "regulation=ccpa": {"new"},
        "received_before=2026-11-02": {"old"},
        "received_from=2026-11-02": {"new"},
        "due_before=2026-12-05": {"old"},
        "status=pending&owed=true": {"old", "new"},
        "owed=false": set(),
        "status=failed": set(),
    }.items():
        page = admin.get(f"/console/requests?{query}").text
        assert {name for name in ("old", "new") if f">{name}</a>" in page} == shown, query
    assert admin.get("/console/requests?model=none").status_code == 422


def test_requests_are_extended_and_cancelled(admin, api, model):
    """The page says what the API says."""
    path = f"/console/requests/{submit(api)['id']}"
    assert "extended: complexity" in admin.send_form(f"{path}/extend", reason="complexity").text
    assert admin.send_form(f"{path}/extend", reason="complexity").status_code == 409
    assert admin.send_form(f"{path}/cancel", reason="because").status_code == 422
    page = admin.send_form(f"{path}/cancel", reason="duplicate").text
    assert "Cancelled" in page
    assert "It is the same as another one." in page
    assert admin.send_form(f"{path}/cancel").status_code == 409


def test_a_failed_request_is_retried_or_resolved(admin, api, services, model):
    """And is no longer owed."""
    first = submit(api)["id"]
    fail_what_waits(services, "utility_budget_exceeded")
    second = submit(api)["id"]
    fail_what_waits(services, "utility_budget_exceeded")
    assert "Waiting" in admin.send_form(f"/console/requests/{first}/retry", reason="policy_changed").text
    page = admin.send_form(f"/console/requests/{second}/resolve", reason="withdrawn").text
    assert "Resolved by an operator" in page
    overview = api.get("/v1/overview").json()
    assert (overview["failed"], [item["id"] for item in overview["due"]]) == (0, [first])
    assert "purge" in page.lower()


def test_a_text_stays_as_it_was_written(admin, api, services, model):
    """Browsers send CRLF for the end of a line; training data has LF, and so does what is unlearned."""
    lines = "a first line\r\nand a second"
    admin.send_form("/console/requests/new", model=model, text=lines)
    file = 'text,reference\r\n"a first line\r\nand a second",K-5\r\n'
    page = admin.send_form("/console/requests/rows", files={"file": ("people.csv", file)}, model=model).text
    admin.send_form("/console/requests/rows/submit", model=model, csv=re.search(r'name="csv" value="([^"]*)"', page)[1])
    with services.db.reading() as session:
        texts = [
            open_records(services.wrapper, requests.by_id(session, UUID(item["id"])))[0][1]
            for item in api.get(URL).json()["items"]
        ]
    assert texts == [b"a first line\nand a second"] * 2


def test_a_corrected_file_makes_no_second_request(admin, api, model):
    """A row counts by its content, not by its file."""
    for last in (",K-2,\n", "now a text,K-2,\n"):
        file = f"text,reference,received_at\nA first text,K-1,\n{last}"
        page = admin.send_form("/console/requests/rows", files={"file": ("people.csv", file)}, model=model).text
        carried = re.search(r'name="csv" value="([^"]*)"', page)[1]
        admin.send_form("/console/requests/rows/submit", model=model, csv=carried)
    assert sorted(item["reference"] for item in api.get(URL).json()["items"]) == ["K-1", "K-2"]


def test_a_request_that_found_nothing_claims_no_new_version(admin, api, services, model):
    """It is completed, and the model was not changed."""
    request_id = submit(api)["id"]
    with services.db.transaction() as session:
        row = requests.by_id(session, UUID(request_id), lock=True)
        requests.move(session, [row], RequestStatus.COMPLETED, reason="nothing_found")
    page = admin.get(f"/console/requests/{request_id}").text
    assert "The model was not changed." in page
    assert "A new version" not in page
    numbers = api.get("/v1/report", params={"from": "2026-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}).json()
    assert numbers["by_status"] == {"nothing_found": 1}
