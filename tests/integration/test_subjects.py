"""From an identity to a forget set, over HTTP and on a real database; the steps are called as workers call them."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select, text

from service.audit.canonical import dumps
from service.audit.commitments import commit
from service.db import corpora, requests
from service.db.corpus_tables import CorpusRecord
from service.db.tables import DeletionRequest, Outbox
from service.doctor import examine
from service.privacy.records import open_records
from service.steps.path.batch import batch_requests
from service.steps.subjects import resolve as resolve_module
from service.steps.subjects.index import _index, index_corpus
from service.steps.subjects.resolve import resolve_request, search
from service.steps.upkeep.purge import purge_due
from service.steps.upkeep.sweep import wake_lost_work
from service.subjects.identifiers import Hasher
from tests import support
from tests.integration.conftest import registration

REQUESTS = "/v1/deletion-requests"


def resolve(services, request_id: str) -> None:
    """As a worker does it."""
    resolve_request(services, UUID(request_id))


ADDRESS = "maria.example@example.org"
LETTER = "Maria Example wrote on the fourth of May that her kitchen at 12 Sample Street had flooded twice{}."
HERS = [LETTER.format(f" (reply to {ADDRESS})"), f"Order 7 of {ADDRESS.upper()}: two lamps and a chair, paid in cash."]
COPY = LETTER.format("").replace("had flooded", "flooded").replace("Maria", "maria")
SOMEBODY_ELSES = LETTER.format(" (reply to boris@example.net)").replace("kitchen", "cellar")
NAMESAKE = "The painter Example, Maria, died in 1702 and left four altarpieces in the valley."


def corpus_of(tmp_path, texts, name="crm", **fields):
    """A body that registers these texts."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t, **({"id": f"k{i}"} if i < 30 else {})}) + "\n" for i, t in enumerate(texts))
    )
    return {"name": name, "path": str(path), **fields}


def fill(services, api, model, body) -> None:
    """Register a corpus and index it."""
    answer = api.post(f"/v1/models/{model}/corpora", json=body)
    assert answer.status_code == 201, answer.text
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)


@pytest.fixture
def filled(api, model, services, tmp_path):
    """The model's corpus, indexed: hers, a copy without the address, somebody else's letter, a namesake, others."""
    texts = [*support.people(30), *HERS, COPY, SOMEBODY_ELSES, NAMESAKE]
    body = corpus_of(tmp_path, texts, columns={"id": "controller_customer_id"})
    answer = api.post(f"/v1/models/{model}/corpora", json=body)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["state"], answer.json()["progress"]) == ("indexing", 0)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    found = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (found["state"], found["records"], found["progress"]) == ("ready", len(texts), 1)
    return texts


def submit(api, **subject):
    """A request that names its person."""
    answer = api.post(REQUESTS, json={"model": "tiny", "subject": subject})
    assert answer.status_code == 202, answer.text
    return answer.json()


def texts_in(services, request_id) -> list[str]:
    """What a request would unlearn."""
    with services.db.transaction() as session:
        request = session.scalar(select(DeletionRequest).where(DeletionRequest.id == request_id))
        return [opened.decode() for _, opened in open_records(services.wrapper, request)]


def by_email(value=ADDRESS, form="raw"):
    """A subject with an address."""
    return {"identities": [{"type": "email", "format": form, "value": value}]}


@pytest.mark.parametrize(
    "subject",
    [
        by_email(),
        by_email(" Maria.EXAMPLE@example.org"),
        by_email(hashlib.sha256(ADDRESS.encode()).hexdigest(), "sha256"),
    ],
    ids=["raw", "other case", "sha256"],
)
def test_an_address_becomes_all_its_records_and_their_copies_and_nobody_elses(api, services, filled, subject):
    """Nothing is batched before; a second message finds nothing more."""
    request = submit(api, **subject)
    assert (request["status"], request["waits_for"], request["records"]) == ("pending", "resolve", 0)
    assert batch_requests(services, services_model(services)) is None  # nothing to batch before it is resolved
    resolve(services, request["id"])
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["waits_for"], found["records"], found["results_count"]) == (None, 3, 3)
    assert found["searched"] == [{"corpus": "crm", "records": len(filled)}]
    assert sorted(texts_in(services, request["id"])) == sorted([*HERS, COPY])
    resolve(services, request["id"])  # a message that comes twice
    assert len(texts_in(services, request["id"])) == 3
    assert batch_requests(services, services_model(services)) is not None


def services_model(services):
    """The one model's id."""
    with services.db.reading() as session:
        return session.scalar(text("SELECT id FROM models"))


def test_a_customer_number_in_a_column(api, services, filled):
    """A column that was named as an identifier."""
    request = submit(api, identities=[{"type": "controller_customer_id", "value": "k3"}])
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [filled[3]]


def test_a_name_alone_waits_for_somebody_to_choose(api, services, filled, key_of):
    """Neither whoever submitted it, nor who may not read."""
    request = submit(api, **by_email(), names=["Maria Example"])
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == "approval"
    assert api.get("/metrics").text.count("unlearnd_requests_awaiting_approval 1.0") == 1
    approver = {"Authorization": f"Bearer {key_of('approve')}"}
    shown = api.get(f"{REQUESTS}/{request['id']}/matches", headers=approver).json()
    kinds = {match["text"]: match["kind"] for match in shown}
    assert kinds == {
        HERS[0]: "identifier", HERS[1]: "identifier", COPY: "near_copy", SOMEBODY_ELSES: "name", NAMESAKE: "name",
    }  # fmt: skip
    hers = [match["match"] for match in shown if match["kind"] != "name"]
    url = f"{REQUESTS}/{request['id']}/approve"
    assert api.post(url, json={}).status_code == 403  # its submitter
    assert api.post(url, json={}, headers={"Authorization": f"Bearer {key_of('submit', 'read')}"}).status_code == 403
    assert api.post(url, json={"matches": [10**6]}, headers=approver).json()["errors"][0]["field"] == "matches"
    assert api.post(url, json={"matches": hers}, headers=approver).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert sorted(texts_in(services, request["id"])) == sorted([*HERS, COPY])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] is None


def test_the_next_persons_form_letter_is_not_taken_for_a_copy(api, services, model, tmp_path, key_of):
    """It has another's name in place of hers, in capitals or not: somebody has to look at it. So for one sent on."""
    more = " The landlord has promised to send somebody before the summer, but nobody came and the floor is rotting."
    mine, copy, sibling = HERS[0] + more, COPY + more, COPY.replace("maria Example", "boris sample") + more
    sent_on = f"{mine} Sent on by clara@example.net."
    fill(services, api, model, corpus_of(tmp_path, [mine, copy, sibling, sent_on.replace(ADDRESS, "hers")]))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    headers = {"Authorization": f"Bearer {key_of('approve')}"}
    url = f"{REQUESTS}/{request['id']}"
    shown = api.get(f"{url}/matches", headers=headers).json()
    similar = [match["text"] for match in shown if match["kind"] == "similar"]
    assert similar == [sibling, sent_on.replace(ADDRESS, "hers")]
    first = api.get(f"{url}/matches?limit=1", headers=headers).json()
    assert first + api.get(f"{url}/matches?after={first[0]['match']}", headers=headers).json() == shown
    hers = [match["match"] for match in shown if match["kind"] != "similar"]
    refused = api.post(f"{url}/approve", json={"matches": []}, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "matches")
    api.post(f"{url}/approve", json={"matches": hers}, headers=headers)
    resolve(services, request["id"])
    assert sorted(texts_in(services, request["id"])) == sorted([mine, copy])


def test_a_form_letter_to_many_is_not_hers(api, services, model, tmp_path, monkeypatch):
    """The same words to thirty other addresses: they are left out, counted, and keep nothing waiting."""
    form = "Your parcel has arrived at the shop in Sample Street, where it is kept for you until Friday evening. ({})"
    fill(services, api, model, corpus_of(tmp_path, [form.format(f"person{i}@example.org") for i in range(30)]))
    subject = by_email("person3@example.org")
    found = api.post(REQUESTS + ":preview", json={"model": model, "subject": subject}).json()
    assert found["counts"] == {"identifier": 1, "near_copy": 0, "similar": 0, "name": 0, "form_letter": 29}
    monkeypatch.setattr(corpora, "MAX_OTHERS", 25)  # more are neither read nor counted
    found = api.post(REQUESTS + ":preview", json={"model": model, "subject": subject}).json()
    assert (found["counts"]["form_letter"], found["needs_approval"]) == (25, False)
    request = submit(api, **subject)
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [form.format("person3@example.org")]


def test_a_word_alone_is_left_out(api, services, model, tmp_path):
    """Nothing can be measured on it, and the others would not be unlearned for it; a sentence without spaces is."""
    sentence = "王小明住在北京市朝阳区建国路一号院二单元三零四室"
    body = corpus_of(tmp_path, ["ok", sentence, HERS[0]], columns={"id": "controller_customer_id"})
    rows = [json.loads(line) | {"id": "k7"} for line in Path(body["path"]).read_text().splitlines()]
    Path(body["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fill(services, api, model, body)
    request = submit(api, identities=[{"type": "controller_customer_id", "value": "k7"}])
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [sentence, HERS[0]]


def test_what_a_name_found_can_be_refused(api, services, filled, key_of):
    """Once; it ends as rejected."""
    request = submit(api, names=["maria example"])
    resolve(services, request["id"])
    headers = {"Authorization": f"Bearer {key_of('approve')}"}
    answer = api.post(f"{REQUESTS}/{request['id']}/reject", json={"reason": "not_the_subject"}, headers=headers)
    assert (answer.json()["status"], answer.json()["reason"]) == ("rejected", "not_the_subject")
    again = api.post(f"{REQUESTS}/{request['id']}/reject", json={"reason": "other"}, headers=headers)
    assert again.status_code == 409


def test_nothing_found_is_done_and_says_where_was_searched(api, services, filled):
    """It ends completed, with no version."""
    request = submit(api, **by_email("nobody@example.org"), names=["Zoltan Unheardof"])
    resolve(services, request["id"])
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["reason"], found["results_count"]) == ("completed", "nothing_found", 0)
    assert found["searched"] == [{"corpus": "crm", "records": len(filled)}]


def test_texts_and_a_person_in_one_request_and_its_receipt_opens_both(api, services, filled):
    """The receipt commits to what was asked; asked again, it is the same."""
    body = {"model": "tiny", "records": [{"text": "given"}], "subject": by_email()}
    request = api.post(REQUESTS, json=body, headers={"Idempotency-Key": "k"}).json()
    resolve(services, request["id"])
    assert sorted(texts_in(services, request["id"])) == sorted(["given", *HERS, COPY])
    assert len(request["receipt"]["records"]) == 2  # the text, and the subject as canonical JSON
    again = api.post(REQUESTS, json=body, headers={"Idempotency-Key": "k"}).json()
    assert again["receipt"]["records"] == request["receipt"]["records"]
    subject = dumps({"identities": [{"type": "email", "format": "raw", "value": ADDRESS}], "names": []})
    for opening, content in zip(request["receipt"]["records"], [b"given", subject], strict=True):
        assert commit(bytes.fromhex(opening["nonce"]), content).hex() == opening["commitment"]


def test_a_request_waits_while_a_corpus_is_being_indexed_and_the_sweep_takes_it_up(api, services, model, tmp_path):
    """Found too early would be found too little."""
    api.post(f"/v1/models/{model}/corpora", json=corpus_of(tmp_path, HERS))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == "resolve"
    woken = []
    services.queue.wake = lambda step, identifier=None, **_: woken.append((step, identifier))
    wake_lost_work(services)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
        assert [str(n) for n in requests.unresolved(session, 10)] == [request["id"]]
    assert ("index", corpus_id) in woken
    index_corpus(services, corpus_id)
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 2


def test_indexing_goes_on_where_it_was_killed_and_two_workers_do_not_index_twice(
    api, services, model, tmp_path, monkeypatch
):
    """A transaction that was cut off has left nothing."""
    texts = support.people(1200, seed=5)
    api.post(f"/v1/models/{model}/corpora", json=corpus_of(tmp_path, texts))
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    real = corpora.add_records

    def killed(session, rows):
        real(session, rows)
        if rows[-1]["start"] > 80_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "add_records", killed)
    with pytest.raises(KeyboardInterrupt):
        index_corpus(services, corpus_id)
    monkeypatch.undo()
    part = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert part["state"] == "indexing"
    assert 0 < part["records"] < len(texts)
    assert 0 < part["progress"] < 1
    calls = iter(range(100))

    def another_comes_between() -> bool:
        if next(calls) == 1:
            _index(services, corpus_id, lambda: True)  # of another process
        return True

    index_corpus(services, corpus_id, go_on=another_comes_between)
    with services.db.reading() as session:
        starts = list(session.scalars(select(CorpusRecord.start)))
    assert len(starts) == len(set(starts)) == len(texts)
    done = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (done["state"], done["records"]) == ("ready", len(texts))


@pytest.mark.slow
def test_three_times_the_records_take_no_more_memory(api, services, model, tmp_path):
    """What is held at once while indexing is some hundred records, however many there are."""
    peaks = []
    for name, count in (("warm", 600), ("small", 1000), ("large", 3000)):
        body = corpus_of(tmp_path, support.people(count, seed=count), name=name)
        tracemalloc.start()
        fill(services, api, model, body)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        size = Path(body["path"]).stat().st_size
    assert peaks[2] < 1.25 * peaks[1], peaks
    assert size > 80 * 3000


def test_a_corpus_that_changed_is_never_taken_for_what_was_indexed(api, services, filled, tmp_path):
    """The request says so and waits; indexed again, it goes on."""
    path = tmp_path / "crm.jsonl"
    path.write_text(path.read_text().replace("flooded twice", "flooded thrice"))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["waits_for"], found["reason"]) == ("pending", "resolve", "corpus_changed: crm")
    assert api.post(REQUESTS + ":preview", json={"model": "tiny", "subject": by_email()}).status_code == 409
    assert api.delete("/v1/models/tiny/corpora/crm").status_code == 204
    api.post("/v1/models/tiny/corpora", json={"name": "crm", "path": str(path)})
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 3


def test_a_corpus_that_failed_or_is_gone_is_not_one_where_nobody_was_found(api, services, filled, tmp_path):
    """The request waits and says why; the operator is told once; it goes on when all is searched."""
    request, doctor = submit(api, **by_email()), lambda: [f.problem for f in examine(services) if f.check == "subjects"]
    with services.db.transaction() as session:
        session.execute(text("UPDATE corpora SET state = 'failed', reason = 'x'"))
    for _ in range(2):
        resolve(services, request["id"])
    found = api.get(f"{REQUESTS}/{request['id']}").json()
    assert (found["status"], found["reason"]) == ("pending", "corpus_failed: crm")
    assert len(doctor()) == 2
    assert api.delete("/v1/models/tiny/corpora/crm").status_code == 204
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "no_corpora"
    with services.db.reading() as session:
        alerts = session.scalars(select(Outbox.status).where(Outbox.target < 0)).all()
    assert alerts == ["not_searchable"]
    fill(services, api, "tiny", {"name": "crm", "path": str(tmp_path / "crm.jsonl")})
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 3
    assert doctor() == []


def test_lines_that_were_added_are_noticed(api, services, filled, tmp_path):
    """Though what was found before is as it was."""
    with (tmp_path / "crm.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": f"And one more of {ADDRESS}."}) + "\n")
    request = submit(api, **by_email())
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["reason"] == "corpus_changed: crm"


@pytest.mark.parametrize("when", ["while it waits", "once it is approved"])
def test_what_was_approved_of_an_index_that_is_no_more_is_searched_for_anew(
    api, services, filled, tmp_path, key_of, when
):
    """The numbers of its records are gone; so are the approvals."""
    request = submit(api, names=["Maria Example"])
    resolve(services, request["id"])
    url, headers = f"{REQUESTS}/{request['id']}", {"Authorization": f"Bearer {key_of('approve')}"}
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


def test_a_decision_that_was_made_meanwhile_stands(api, services, filled, key_of, monkeypatch):
    """A second resolver, which began before an approval, does not undo it."""
    request = submit(api, names=["Maria Example"])
    headers = {"Authorization": f"Bearer {key_of('approve')}"}

    def meanwhile(*arguments):
        monkeypatch.setattr(resolve_module, "search", real_search)
        found = real_search(*arguments)
        resolve(services, request["id"])
        assert api.post(f"{REQUESTS}/{request['id']}/approve", json={}, headers=headers).status_code == 200
        return found

    real_search = search
    monkeypatch.setattr(resolve_module, "search", meanwhile)
    resolve(services, request["id"])
    assert api.get(f"{REQUESTS}/{request['id']}").json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 5


def test_a_preview_counts_and_shows_texts_to_approvers_alone(api, services, filled, key_of):
    """And makes no request."""
    body = {"model": "tiny", "subject": {**by_email(), "names": ["Maria Example"]}}
    reader = {"Authorization": f"Bearer {key_of('read')}"}
    found = api.post(REQUESTS + ":preview", json=body, headers=reader).json()
    assert found["counts"] == {"identifier": 2, "near_copy": 1, "similar": 0, "name": 2, "form_letter": 0}
    assert (found["needs_approval"], found["matches"]) == (True, None)
    assert found["searched"] == [{"corpus": "crm", "records": len(filled)}]
    shown = api.post(REQUESTS + ":preview", json=body, headers={"Authorization": f"Bearer {key_of('approve', 'read')}"})
    assert {match["text"] for match in shown.json()["matches"]} == {*HERS, COPY, SOMEBODY_ELSES, NAMESAKE}
    assert api.get(REQUESTS).json()["items"] == []  # it made no request


def test_two_people_have_to_approve_where_the_policy_says_so(api, services, base, key_of):
    """Two keys, not one twice."""
    policy = {"max_wait_seconds": 0, "approvals": 2}
    assert api.post("/v1/models", json=registration(base, name="careful", policy=policy)).status_code == 201
    request = api.post(REQUESTS, json={"model": "careful", "records": [{"text": "A text."}]}).json()
    assert request["waits_for"] == "approval"
    one, two = ({"Authorization": f"Bearer {key_of('approve')}"} for _ in range(2))
    url = f"{REQUESTS}/{request['id']}/approve"
    assert api.get(f"{REQUESTS}/{request['id']}/matches", headers=one).json()[0]["text"] == "A text."
    assert api.post(url, json={}, headers=one).json()["waits_for"] == "approval"
    assert api.post(url, json={}, headers=one).status_code == 409
    assert batch_requests(services, services_model(services)) is None
    assert api.post(url, json={}, headers=two).json()["waits_for"] is None
    assert batch_requests(services, services_model(services)) is not None


def test_an_approval_of_something_else_does_not_count(api, services, filled, key_of, monkeypatch):
    """Who chooses less begins anew."""
    with services.db.transaction() as session:
        session.execute(text("""UPDATE models SET policy = policy || '{"approvals": 2}'"""))
    request = submit(api, **by_email())
    resolve(services, request["id"])
    one, two, three = ({"Authorization": f"Bearer {key_of('approve')}"} for _ in range(3))
    url = f"{REQUESTS}/{request['id']}"
    all_of_them = [m["match"] for m in api.get(f"{url}/matches", headers=one).json()]
    assert api.post(f"{url}/approve", json={}, headers=one).status_code == 200
    fewer = api.post(f"{url}/approve", json={"matches": all_of_them[:1]}, headers=two)
    assert fewer.json()["waits_for"] == "approval"  # the first approved more than this
    assert api.post(f"{url}/approve", json={"matches": all_of_them[:1]}, headers=three).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 1


@pytest.mark.parametrize(
    ("subject", "field"),
    [
        ({}, "subject"),
        ({"identities": [{"type": "email", "value": "SECRET"}]}, "subject.identities.0.value"),
        ({"identities": [{"type": "email", "format": "sha256", "value": "SECRET"}]}, "subject.identities.0.value"),
        ({"identities": [{"type": "shoe_size", "value": "SECRET"}]}, "subject.identities.0.type"),
        ({"identities": [{"type": "android_id", "value": "SECRET"}]}, "subject.identities.0.type"),
        ({"names": ["SECRET\0"]}, "subject.names.0"),
        ({"names": ["?"]}, "subject.names.0"),
    ],
)
def test_a_bad_subject_is_named_and_not_repeated(api, filled, subject, field):
    """The field, never the value."""
    answer = api.post(REQUESTS, json={"model": "tiny", "subject": subject})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert "SECRET" not in answer.text


def test_a_request_that_was_taken_is_the_same_still_when_its_corpus_is_gone(api, services, filled):
    """A tool that repeats it under its Idempotency-Key has its receipt."""
    body, key = {"model": "tiny", "subject": by_email()}, {"Idempotency-Key": "k"}
    first = api.post(REQUESTS, json=body, headers=key).json()
    api.delete("/v1/models/tiny/corpora/crm")
    assert api.post(REQUESTS, json=body, headers=key).json() == first
    assert api.post(REQUESTS, json=body).json()["code"] == "no_corpora"


def test_a_file_that_is_away_for_a_while_undoes_no_approval(api, services, filled, tmp_path, key_of):
    """It is not taken for a changed one; once it is back, what was approved is taken."""
    request = submit(api, names=["Maria Example"])
    resolve(services, request["id"])
    url, headers = f"{REQUESTS}/{request['id']}", {"Authorization": f"Bearer {key_of('approve')}"}
    (tmp_path / "crm.jsonl").rename(tmp_path / "away")
    assert api.get(f"{url}/matches", headers=headers).status_code == 409
    assert api.post(f"{url}/approve", json={}, headers=headers).json()["waits_for"] == "resolve"
    resolve(services, request["id"])
    assert api.get(url).json()["reason"] == "corpus_away: crm"
    (tmp_path / "away").rename(tmp_path / "crm.jsonl")
    resolve(services, request["id"])
    assert len(texts_in(services, request["id"])) == 5


def test_a_footer_that_all_letters_have_makes_nobodys_letter_hers(api, services, model, tmp_path):
    """An address in the record that is not what was asked for finds nothing."""
    form = "Your parcel has arrived at the shop in Sample Street. Questions? shop@example.net ({})"
    fill(services, api, model, corpus_of(tmp_path, [form.format(f"person{i}@example.org") for i in range(30)]))
    request = submit(api, **by_email("person3@example.org"))
    resolve(services, request["id"])
    assert texts_in(services, request["id"]) == [form.format("person3@example.org")]


def test_a_person_cannot_be_looked_up_where_nothing_is_searched(api, model):
    """To find nothing there would be a lie."""
    answer = api.post(REQUESTS, json={"model": model, "subject": by_email()})
    assert (answer.status_code, answer.json()["code"]) == (422, "no_corpora")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"path": "/nowhere"}, "path"), ({"path": "relative"}, "path"),
        ({"columns": {"id": "shoe_size"}}, "columns.id"), ({"columns": {"mail": "email"}}, "columns"),
        ({"form": "csv"}, "path"),
        ({"text_column": "body"}, "path"), ({"name": "Bad Name"}, "name"),
        ({"phone_region": "de"}, "phone_region"),
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_be_read_is_refused_at_once(api, model, tmp_path, changes, field):
    """Its first record is read before it is taken."""
    answer = api.post(f"/v1/models/{model}/corpora", json={**corpus_of(tmp_path, HERS), **changes})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


def test_a_corpus_that_breaks_off_says_where(api, services, model, tmp_path):
    """Its name is taken until it is removed."""
    body = corpus_of(tmp_path, support.people(600))
    with Path(body["path"]).open("a") as handle:
        handle.write("{broken\n")
    api.post(f"/v1/models/{model}/corpora", json=body)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    found = api.get(f"/v1/models/{model}/corpora").json()["items"][0]
    assert found["state"] == "failed"
    assert "is not a JSON object" in found["reason"]
    assert api.post(f"/v1/models/{model}/corpora", json=body).status_code == 409


def test_purging_forgets_the_person_too(api, services, filled):
    """The subject goes with the texts."""
    request = submit(api, **by_email("nobody@example.org"))
    resolve(services, request["id"])
    with services.db.transaction() as session:
        session.execute(text("UPDATE deletion_requests SET finished_at = now() - interval '1 year'"))
        session.execute(text("UPDATE outbox SET delivered_at = now()"))
    assert purge_due(services) == 1
    with services.db.reading() as session:
        row = session.scalar(select(DeletionRequest))
        assert (row.subject, row.resolution, row.wrapped_key) == (None, None, None)


def test_nothing_in_the_database_can_be_read(api, services, filled):
    """Neither texts nor addresses, as text or as bytes."""
    submit(api, **by_email(), names=["Maria Example"])
    with services.db.reading() as session:
        for table in ("corpus_records", "deletion_requests", "records", "audit_entries", "corpora"):
            rows = "\n".join(session.scalars(text(f"SELECT row_to_json(t)::text FROM {table} t")))
            for secret in ("maria", "example.org", "Sample Street", "flooded"):
                for form in (secret, secret.encode().hex()):
                    assert form.lower() not in rows.lower(), (table, secret)


def test_look_ups_use_the_indexes(api, services, filled):
    """However many records there are."""
    hasher = Hasher(services.wrapper)
    with services.db.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        for condition in (
            f"identifiers && ARRAY[{hasher.identity('email', 'raw', ADDRESS)[0]}]::bigint[]",
            f"words @@ '{hasher.phrase('Maria Example')}'::tsquery", "bands && ARRAY[1]::bigint[]",
        ):  # fmt: skip
            plan = "\n".join(session.scalars(text(f"EXPLAIN SELECT id FROM corpus_records WHERE {condition}")))
            assert f"ix_corpus_records_{condition.split()[0]}" in plan, plan
