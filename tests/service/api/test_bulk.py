"""Many requests in one call: a result for each line, and what is wrong with one line stops no other."""

import json

import psycopg
import pytest
from sqlalchemy import exc

from service.api.rates import RateLimiter
from service.audit.commitments import commit, request_commitment
from service.db.tables import DeletionRequest, Record
from tests.service.api.submissions import REQUESTS, SECRET, assert_problem, body, counts

BULK = f"{REQUESTS}:bulk"
NDJSON = {"Content-Type": "application/x-ndjson"}


def send(api, *lines, **headers) -> list[dict]:
    """The results of these lines: documents, or strings that are sent as they are."""
    content = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    answer = api.post(BULK, content=content.encode(), headers=NDJSON | headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert "Zoraida" not in answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_each_line_has_a_result_in_order(api, services, model):
    """Accepted lines have an id and a receipt that opens their commitment; empty lines do not count."""
    texts = [f"{SECRET} {number}" for number in range(70)]  # more than a group
    lines = [body(records=[{"text": text}], reference=f"case {i}") for i, text in enumerate(texts)]
    results = send(api, *lines[:5], "", "  ", *lines[5:])
    assert [result["index"] for result in results] == list(range(70))
    assert all(set(result) == {"index", "status", "id", "receipt"} for result in results)
    for text, result in zip(texts, results, strict=True):
        (opening,) = result["receipt"]["records"]
        commitment = commit(bytes.fromhex(opening["nonce"]), text.encode())
        assert request_commitment(result["receipt"]["ref"], [commitment]).hex() == result["receipt"]["commitment"]
    kept = [api.get(f"{REQUESTS}/{result['id']}").json() for result in results]
    assert [request["reference"] for request in kept] == [f"case {i}" for i in range(70)]


BAD_LINES = {
    "not JSON": (f'{{"model": "tiny", "records": "{SECRET}', "body"),
    "not an object": (json.dumps([SECRET]), "body"),
    "unknown model": (body(model="nope"), "model"),
    "unknown field": (body(priority=SECRET), "priority"),
    "empty record": (body(records=[{"text": " "}]), "records.0.text"),
    "too many records": (body(records=[{"text": SECRET}] * 9), "records"),
    "a lone surrogate": ('{"model": "tiny", "records": [{"text": "Zoraida \\ud800"}]}', None),
    "idempotency key": (body(idempotency_key=""), "idempotency_key"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_stops_no_other(api, services, model, name):
    """Its problem is that of a single request, names the field and echoes nothing; its neighbours are accepted."""
    line, field = BAD_LINES[name]
    first, bad, last = send(api, body(), line, body())
    assert [first["status"], bad["status"], last["status"]] == [202, 422, 202]
    assert set(bad) == {"index", "status", "problem"}
    assert bad["problem"]["status"] == 422
    if field:
        assert field in [error["field"] for error in bad["problem"]["errors"]]
    if isinstance(line, dict) and name != "idempotency key":
        assert api.post(REQUESTS, json=line).json() == bad["problem"]
    assert counts(services)[1] == 2


def test_the_same_body_again_makes_nothing_new(api, services, model):
    """Each line is known by its key, with the same receipt; the same key with another body is refused."""
    lines = [body(records=[{"text": f"{SECRET} {i}"}], idempotency_key=f"row {i}") for i in range(40)]
    first = send(api, *lines)
    before = counts(services)
    assert send(api, *lines) == first
    assert counts(services) == before
    (refused,) = send(api, {**lines[0], "idempotency_key": "row 1"})
    assert refused["problem"]["code"] == "idempotency_key_reused"
    single = {name: value for name, value in lines[0].items() if name != "idempotency_key"}
    again = api.post(REQUESTS, json=single, headers={"Idempotency-Key": "row 0"}).json()
    assert again["id"] == first[0]["id"]


def test_one_key_twice_in_a_body_is_one_request(api, services, model):
    """Whichever comes first; the other one gets the same id, or is refused if its body is another."""
    line = body(idempotency_key="k")
    same, again, other = send(api, line, line, {**line, "records": [{"text": "other"}]})
    statuses = sorted([same["status"], again["status"], other["status"]])
    assert statuses in ([202, 202, 422], [202, 422, 422])
    assert counts(services)[1] == 1


def test_lines_count_against_the_rate_limit(api, services, model):
    """A bulk call is no way around it: lines over the limit are refused, the others stay accepted."""
    api.app.state.rate_limiter = RateLimiter(6)
    results = send(api, *[body()] * 8)
    assert sorted(result["status"] for result in results) == [202] * 5 + [429] * 3  # the call itself counts too
    assert counts(services)[1] == 5


@pytest.mark.parametrize("error", [psycopg.OperationalError(), exc.TimeoutError("no connection is free")])
def test_after_an_outage_no_further_line_is_tried(api, services, model, error):
    """Every line has its answer at once: lines behind a group that found no database do not wait for it in turn."""
    tried = []

    def unreachable(sql, values, name):
        tried.append(name)
        raise error

    services.db.statement = unreachable
    results = send(api, *[body()] * 100)
    assert {(result["status"], result["problem"]["code"]) for result in results} == {(503, "unavailable")}
    assert [result["index"] for result in results] == list(range(100))
    assert tried == ["accept"]


def test_what_is_not_a_bulk_body_is_refused_whole(api, services, model, new_key):
    """Another media type, too many lines, too many bytes, no right to submit: nothing is stored."""
    reader = {"Authorization": f"Bearer {new_key('read')}"}
    before = counts(services)
    line = json.dumps(body()).encode() + b"\n"
    assert_problem(api.post(BULK, content=line, headers={"Content-Type": "application/json"}), 415, "Content-Type")
    assert_problem(api.post(BULK, json=body()), 415, "Content-Type")
    assert_problem(api.post(BULK, content=b"{}\n" * 10_001, headers=NDJSON), 422, "body")
    assert_problem(api.post(BULK, content=line * 3000, headers=NDJSON), 413, "body")
    assert_problem(api.post(BULK, content=line, headers=NDJSON | reader), 403)
    assert counts(services) == before
    assert send(api) == []


def test_a_bulk_line_names_a_person_too(api, services, model):
    """A line with a subject is held to what a single request is held to."""
    line = {"model": "tiny", "subject": {"identities": [{"type": "email", "value": "zoraida@example.org"}]}}
    (result,) = send(api, line)
    assert result["problem"] == api.post(REQUESTS, json=line).json()
    with services.db.reading() as session:
        assert session.query(DeletionRequest).count() == session.query(Record).count() == 0
