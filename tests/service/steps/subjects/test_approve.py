"""What a person has to approve, who may, and what undoes an approval."""

import pytest
from sqlalchemy import text

from service.steps.path.batch import batch_requests
from service.steps.subjects import resolve as resolve_module
from service.steps.subjects.resolve import search
from tests.service.conftest import registration
from tests.service.steps.subjects.corpus import (
    COPY,
    HERS,
    NAMESAKE,
    REQUESTS,
    SOMEBODY_ELSES,
    by_email,
    fill,
    resolve,
    submit,
    texts_in,
    the_model_id,
)


def test_a_name_alone_waits_for_somebody_to_choose(api, services, filled, new_key):
    """Neither whoever submitted it, nor who may not read."""
    request = submit(api, **by_email(), names=["Maria Example"])
    resolve(services, request["id"])
    waiting = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (waiting["waits_for"], waiting["searched_at"] > waiting["accepted_at"]) == ("approval", True)
    assert api.get("/metrics").text.count("unlearnd_requests_awaiting_approval 1.0") == 1
    approver = {"Authorization": f"Bearer {new_key('approve')}"}
    shown = api.get(f"{REQUESTS}/{request['id']}/matches", headers=approver).json()
    kinds = {match["text"]: match["kind"] for match in shown}
    assert kinds == {
        HERS[0]: "identifier",
        HERS[1]: "identifier",
        COPY: "near_copy",
        SOMEBODY_ELSES: "name",
        NAMESAKE: "name",
    }
    hers = [match["match"] for match in shown if match["kind"] != "name"]
    url = f"{REQUESTS}/{request['id']}/approve"
    assert api.post(url, json={}).status_code == 403  # its submitter
    assert api.post(url, json={}, headers={"Authorization": f"Bearer {new_key('submit', 'read')}"}).status_code == 403
    assert api.post(url, json={"matches": [10**6]}, headers=approver).json()["errors"][0]["field"] == "matches"
    assert api.post(url, json={"matches": hers}, headers=approver).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    after = api.get(f"{REQUESTS}/{request['id']}").json()
    assert after["searched_at"] == waiting["searched_at"]  # nothing was looked up again
    assert sorted(texts_in(services, request["id"])) == sorted([*HERS, COPY])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] is None


def test_what_a_name_found_can_be_refused(api, services, filled, new_key):
    """Once; it ends as rejected."""
    request = submit(api, names=["maria example"])
    resolve(services, request["id"])
    headers = {"Authorization": f"Bearer {new_key('approve')}"}
    answer = api.post(f"{REQUESTS}/{request['id']}/reject", json={"reason": "not_the_subject"}, headers=headers)
    assert (answer.json()["status"], answer.json()["reason"]) == ("rejected", "not_the_subject")
    again = api.post(f"{REQUESTS}/{request['id']}/reject", json={"reason": "other"}, headers=headers)
    assert again.status_code == 409


@pytest.mark.parametrize("when", ["while it waits", "once it is approved"])
def test_what_was_approved_of_an_index_that_is_no_more_is_searched_for_anew(
    api, services, filled, tmp_path, new_key, when
):
    """The numbers of its records are gone; so are the approvals."""
    request = submit(api, names=["Maria Example"])
    resolve(services, request["id"])
    url, headers = f"{REQUESTS}/{request['id']}", {"Authorization": f"Bearer {new_key('approve')}"}
    if when == "once it is approved":
        assert api.post(f"{url}/approve", json={}, headers=headers).json()["waits_for"] == "resolve"
    assert api.delete("/v1/models/tiny/corpora/crm").status_code == 204
    fill(services, api, "tiny", {"name": "crm", "path": str(tmp_path / "crm.jsonl")})
    if when == "while it waits":
        assert api.get(f"{url}/matches", headers=headers).status_code == 409
    else:
        resolve(services, request["id"])
        assert api.get(url).json()["reason"] == "corpus_removed"
    resolve(services, request["id"])
    assert api.get(url).json()["waits_for"] == "approval"
    assert len(api.get(f"{url}/matches", headers=headers).json()) == 5  # her address is her name, too
    assert api.post(f"{url}/approve", json={}, headers=headers).status_code == 200


def test_a_decision_that_was_made_meanwhile_stands(api, services, filled, new_key, monkeypatch):
    """A second resolver, which began before an approval, does not undo it."""
    request = submit(api, names=["Maria Example"])
    headers = {"Authorization": f"Bearer {new_key('approve')}"}

    def meanwhile(*arguments):
        monkeypatch.setattr(resolve_module, "search", real_search)
        matches = real_search(*arguments)
        monkeypatch.setattr(resolve_module, "IN_WORK", set())  # another process knows nothing of this one's
        resolve(services, request["id"])
        assert api.post(f"{REQUESTS}/{request['id']}/approve", json={}, headers=headers).status_code == 200
        return matches

    real_search = search
    monkeypatch.setattr(resolve_module, "search", meanwhile)
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 5


def test_two_people_have_to_approve_where_the_policy_says_so(api, services, base, new_key):
    """Two keys, not one twice."""
    policy = {"max_wait_seconds": 0, "approvals": 2}
    assert api.post("/v1/models", json=registration(base, name="careful", policy=policy)).status_code == 201
    request = api.post(REQUESTS, json={"model": "careful", "records": [{"text": "A text."}]}).json()
    assert request["waits_for"] == "approval"
    one, two = ({"Authorization": f"Bearer {new_key('approve')}"} for _ in range(2))
    url = f"{REQUESTS}/{request['id']}/approve"
    assert api.get(f"{REQUESTS}/{request['id']}/matches", headers=one).json()[0]["text"] == "A text."
    assert api.post(url, json={}, headers=one).json()["waits_for"] == "approval"
    assert api.post(url, json={}, headers=one).status_code == 409
    assert api.get(f"{REQUESTS}/{request['id']}/matches", headers=two).json()[0]["text"] == "A text."
    assert batch_requests(services, the_model_id(services)) is None
    assert api.post(url, json={}, headers=two).json()["waits_for"] is None
    assert batch_requests(services, the_model_id(services)) is not None


def test_an_approval_of_something_else_does_not_count(api, services, filled, new_key, monkeypatch):
    """Who chooses less begins anew."""
    with services.db.transaction() as session:
        session.execute(text("""UPDATE models SET policy = policy || '{"approvals": 2}'"""))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    one, two, three = ({"Authorization": f"Bearer {new_key('approve')}"} for _ in range(3))
    url = f"{REQUESTS}/{request['id']}"
    all_of_them = [m["match"] for m in api.get(f"{url}/matches", headers=one).json()]
    assert api.post(f"{url}/approve", json={}, headers=one).status_code == 200
    fewer = api.post(f"{url}/approve", json={"matches": all_of_them[:1]}, headers=two)
    assert fewer.json()["waits_for"] == "approval"  # the first approved more than this
    assert api.post(f"{url}/approve", json={"matches": all_of_them[:1]}, headers=three).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 1


def test_a_file_that_is_away_for_a_while_undoes_no_approval(api, services, filled, tmp_path, new_key):
    """It is not taken for a changed one; once it is back, what was approved is taken."""
    request = submit(api, names=["Maria Example"])
    resolve(services, request["id"])
    url, headers = f"{REQUESTS}/{request['id']}", {"Authorization": f"Bearer {new_key('approve')}"}
    (tmp_path / "crm.jsonl").rename(tmp_path / "away")
    assert api.get(f"{url}/matches", headers=headers).status_code == 409
    assert api.post(f"{url}/approve", json={}, headers=headers).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert api.get(url).json()["reason"] == "corpus_away: crm"
    (tmp_path / "away").rename(tmp_path / "crm.jsonl")
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 5


def test_who_decided_is_on_record(api, services, base, new_key):
    """Who approved, then who rejected, each with its name; an API key that may not decide or audit does not see it."""
    assert api.post("/v1/models", json=registration(base, policy={"approvals": 2})).status_code == 201
    submitter, approver, other = (
        {"Authorization": f"Bearer {new_key(*scopes)}"} for scopes in (["submit"], ["approve"], ["approve", "read"])
    )
    body = {"model": "tiny", "records": [{"text": "a record"}]}
    url = f"{REQUESTS}/{api.post(REQUESTS, json=body, headers=submitter).json()['id']}"
    assert api.get(url).json()["decisions"] == []
    assert api.post(f"{url}/approve", json={}, headers=approver).json()["decisions"][0]["decision"] == "approved"
    rejected = api.post(f"{url}/reject", json={"reason": "other"}, headers=other).json()
    ids = [key["id"] for key in api.get("/v1/api-keys").json()["items"] if "approve" in key["scopes"]]
    shown = [(d["decision"], d["api_key_id"], d["name"], d["reason"]) for d in rejected["decisions"]]
    assert shown == [("approved", ids[0], "test", None), ("rejected", ids[1], "test", "other")]
    assert api.get(url).json() == rejected
    assert api.get(url, headers=submitter).json()["decisions"] is None
