"""The API as INTERFACES has it, and a clear answer for every bad input."""

import hashlib
import json
import shutil
import socket
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from service.audit.commitments import commit, request_commitment
from service.db.tables import AuditEntry, DeletionRequest, Model, Record
from tests.integration.conftest import registration

SECRET = "Zoraida Quill answers to 07700 900123"
REQUESTS = "/v1/deletion-requests"


def body(**changes) -> dict:
    """A valid submission."""
    return {"model": "tiny", "records": [{"text": SECRET}], **changes}


def counts(services) -> tuple[int, ...]:
    """How many rows there are of what a bad input must not make."""
    with services.db.transaction() as session:
        tables = (Model, DeletionRequest, Record, AuditEntry)
        return tuple(session.scalar(select(func.count()).select_from(t)) for t in tables)


def assert_problem(answer, status: int, field: str | None = None) -> dict:
    """A problem document that names the field and repeats nothing of the text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    assert {"type", "title", "detail", "code"} <= set(found)
    if field:
        assert field in [e["field"] for e in found["errors"]], found
    assert "Zoraida" not in answer.text
    assert "900123" not in answer.text
    return found


def test_accepting_is_durable_sealed_and_logged(api, services, model):
    """202 with a receipt that opens the commitment; the text is in the database only as ciphertext."""
    answer = api.post(REQUESTS, json=body(subject_ref="case 7", callback_url="https://example.org/cb"))
    assert answer.status_code == 202
    found = answer.json()
    assert answer.headers["location"] == f"{REQUESTS}/{found['id']}"
    assert found["status"] == "pending"
    receipt = found["receipt"]
    (opening,) = receipt["records"]
    commitment = commit(bytes.fromhex(opening["nonce"]), SECRET.encode())
    assert commitment.hex() == opening["commitment"]
    assert request_commitment(receipt["ref"], [commitment]).hex() == receipt["commitment"]
    with services.db.transaction() as session:
        row = session.scalars(select(DeletionRequest)).one()
        stored = b"".join([row.records[0].sealed, row.subject_ref, row.callback_url, row.wrapped_key])
        entries = b"".join(session.scalars(select(AuditEntry.entry)))
    for text in (b"Zoraida", b"900123", b"case 7", b"example.org"):
        assert text not in stored
        assert text not in entries
    assert row.ref.encode() in entries
    due = datetime.fromisoformat(found["due_at"]) - datetime.fromisoformat(found["received_at"])
    assert timedelta(days=28) <= due <= timedelta(days=31)


def test_the_same_key_gives_the_same_request(api, services, model):
    """Whole answer, receipt included; another body is refused and changes nothing."""
    first = api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json()
    before = counts(services)
    assert api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json() == first
    other = api.post(REQUESTS, json=body(records=[{"text": SECRET + "!"}]), headers={"Idempotency-Key": "k"})
    assert assert_problem(other, 422, "Idempotency-Key")["code"] == "idempotency_key_reused"
    assert counts(services) == before


def test_idempotency_keys_belong_to_their_api_key(api, key_of, model):
    """Two callers may use the same word."""
    first = api.post(REQUESTS, json=body(), headers={"Idempotency-Key": "k"}).json()
    headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {key_of('submit')}"}
    assert api.post(REQUESTS, json=body(), headers=headers).json()["id"] != first["id"]


FUTURE = (datetime.now(UTC) + timedelta(days=1)).isoformat()
BAD_BODIES = {
    "unknown model": (body(model="nope"), "model"),
    "no records": ({"model": "tiny"}, "records"),
    "empty records": (body(records=[]), "records"),
    "too many records": (body(records=[{"text": SECRET}] * 9), "records"),
    "empty record": (body(records=[{"text": ""}]), "records.0.text"),
    "white space": (body(records=[{"text": SECRET}, {"text": " \n "}]), "records.1.text"),
    "NUL": (body(records=[{"text": SECRET + "\0"}]), "records.0.text"),
    "too long": (body(records=[{"text": SECRET + "é" * 500}]), "records.0.text"),
    "text is a number": (body(records=[{"text": 7}]), "records.0.text"),
    "record is a string": (body(records=[SECRET]), "records.0"),
    "records is a string": (body(records=SECRET), "records"),
    "unknown field": (body(priority="high"), "priority"),
    "unknown field with a name in it": (body(**{SECRET: 1}), "(unknown field)"),
    "unknown field in a record": (body(records=[{"text": SECRET, "lang": "en"}]), "records.0.lang"),
    "future": (body(received_at=FUTURE), "received_at"),
    "no time zone": (body(received_at="2026-01-01T00:00:00"), "received_at"),
    "no date": (body(received_at=SECRET), "received_at"),
    "regulation": (body(regulation=SECRET), "regulation"),
    "callback": (body(callback_url="ftp://example.org"), "callback_url"),
    "not an object": ([SECRET], "body"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_names_its_field_and_changes_nothing(api, services, model, name):
    """422 for each, nothing echoed, no row made."""
    before = counts(services)
    sent, field = BAD_BODIES[name]
    assert_problem(api.post(REQUESTS, json=sent), 422, field)
    assert counts(services) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model": "tiny", "records": [{"text": "Zoraida \xff\xfe"}]}', 400),
        (b'{"model": "tiny", "records": [{"text": "Zoraida \\ud800"}]}', 422),
        (b'{"model": "tiny", "records": [{"text": "Zoraida', 422),
    ],
)
def test_bytes_that_are_not_text(api, services, model, content, status):
    """Invalid UTF-8, a lone surrogate, cut JSON."""
    before = counts(services)
    assert_problem(api.post(REQUESTS, content=content, headers={"Content-Type": "application/json"}), status)
    assert counts(services) == before


def test_a_body_over_the_limit_is_refused_before_it_is_read(api, services, model):
    """By its announced length, and by its real one when none is announced."""
    before = counts(services)
    big = json.dumps(body(records=[{"text": SECRET * 10_000}])).encode()
    headers = {"Content-Type": "application/json"}
    assert_problem(api.post(REQUESTS, content=big, headers=headers), 413, "body")
    assert_problem(api.post(REQUESTS, content=iter([big[:100_000], big[100_000:]]), headers=headers), 413, "body")
    assert counts(services) == before


def test_keys_and_scopes(api, key_of, model):
    """No key, an unknown one, a revoked one: 401. The wrong scope: 403."""
    anonymous = {"Authorization": ""}
    assert_problem(api.get(REQUESTS, headers=anonymous), 401)
    assert_problem(api.get(REQUESTS, headers={"Authorization": "Bearer unl_nope"}), 401)
    made = api.post("/v1/api-keys", json={"name": "robot", "scopes": ["read"]}).json()
    reader = {"Authorization": f"Bearer {made['key']}"}
    assert api.get(REQUESTS, headers=reader).status_code == 200
    assert_problem(api.post(REQUESTS, json=body(), headers=reader), 403)
    assert_problem(api.post("/v1/models", json={}, headers=reader), 403)
    assert_problem(api.get("/v1/models/tiny/versions/0/files/model/config.json", headers=reader), 403)
    assert_problem(api.post("/v1/api-keys", json={"name": "x", "scopes": ["admin"]}, headers=reader), 403)
    submitter = {"Authorization": f"Bearer {key_of('submit')}"}
    assert api.post(REQUESTS, json=body(), headers=submitter).status_code == 202
    assert api.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert_problem(api.get(REQUESTS, headers=reader), 401)
    assert "key" not in api.get("/v1/api-keys").json()["items"][0]


def test_keys_are_stored_hashed(api, services, key_of):
    """The secret is nowhere in the table."""
    secret = key_of("read")
    with services.db.transaction() as session:
        from service.db.tables import ApiKey

        hashes = list(session.scalars(select(ApiKey.key_hash)))
    assert hashlib.sha256(secret.encode()).digest() in hashes


def test_cancel_while_pending_and_not_after(api, services, model):
    """200 once, 409 afterwards; an unknown id is 404."""
    request = api.post(REQUESTS, json=body()).json()
    assert api.delete(f"{REQUESTS}/{request['id']}").json()["status"] == "cancelled"
    assert_problem(api.delete(f"{REQUESTS}/{request['id']}"), 409)
    assert_problem(api.delete(f"{REQUESTS}/{uuid4()}"), 404)
    assert_problem(api.post(f"{REQUESTS}/{request['id']}/retry"), 409)


def test_lists_page_and_filter(api, model):
    """Cursors walk through everything once, newest first; filters narrow it."""
    sent = [api.post(REQUESTS, json=body()).json()["id"] for _ in range(5)]
    api.delete(f"{REQUESTS}/{sent[0]}")
    seen, cursor = [], None
    while True:
        page = api.get(REQUESTS, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [r["id"] for r in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == sent[::-1]
    assert [r["id"] for r in api.get(REQUESTS, params={"status": "cancelled"}).json()["items"]] == [sent[0]]
    assert api.get(REQUESTS, params={"model": "other"}).json()["items"] == []
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert api.get(REQUESTS, params={"due_before": soon}).json()["items"] == []
    assert_problem(api.get(REQUESTS, params={"cursor": "%%"}), 422, "cursor")
    assert_problem(api.get(REQUESTS, params={"status": "lost"}), 422, "status")
    assert_problem(api.get(REQUESTS, params={"limit": 0}), 422, "limit")


def test_files_with_range_etag_and_digest(api, base, model):
    """Whole, in part, not modified; only listed paths can be read."""
    url = "/v1/models/tiny/versions/0/files/model/config.json"
    content = (base / "model" / "config.json").read_bytes()
    digest = hashlib.sha256(content)
    whole = api.get(url)
    assert whole.content == content
    assert whole.headers["etag"] == f'"{digest.hexdigest()}"'
    assert whole.headers["repr-digest"] == f"sha-256=:{b64encode(digest.digest()).decode()}:"
    part = api.get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, content[5:10])
    assert api.get(url, headers={"Range": "bytes=5-9", "If-Range": '"other"'}).status_code == 200
    assert api.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert api.get(url, headers={"Range": "bytes=999999-"}).status_code == 416
    assert api.head(url).headers["content-length"] == str(len(content))
    for path in ("../../keys/kek", "%2e%2e/%2e%2e/keys/kek", "model/nope", "model", "/etc/passwd"):
        assert_problem(api.get(f"/v1/models/tiny/versions/0/files/{path}"), 404)


def test_versions(api, model):
    """Version 0 is the base; unknown models and versions are 404; version 0 has no certificate."""
    listed = api.get("/v1/models/tiny/versions").json()
    assert [v["version"] for v in listed["items"]] == [0]
    latest = api.get("/v1/models/tiny/versions/latest").json()
    assert (latest["version"], latest["parent"]) == (0, None)
    assert "model/model.safetensors" in [f["path"] for f in latest["files"]]
    assert_problem(api.get("/v1/models/nope/versions"), 404)
    assert_problem(api.get("/v1/models/tiny/versions/7"), 404)
    assert_problem(api.get("/v1/models/tiny/versions/x"), 422, "number")
    assert_problem(api.get("/v1/models/tiny/versions/0/certificate"), 404)
    assert api.get("/v1/models").json()["items"][0]["name"] == "tiny"
    assert_problem(api.get(f"/v1/jobs/{uuid4()}"), 404)
    assert_problem(api.get(f"/v1/jobs/{uuid4()}/events"), 404)


def damaged(base, folder, change) -> str:
    """A copy of the model's folder with one thing changed."""
    shutil.copytree(base / "model", folder)
    change(folder)
    return str(folder)


def ask_for_code(folder) -> None:
    """Give config.json an auto_map."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "m.M"}}))


def safetensors_file(**changes) -> bytes:
    """A file with one tensor of eight bytes, its header changed; the data it speaks of ends with the file."""
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    header = json.dumps({"t": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(tensor["data_offsets"][1])


BAD_FOLDERS = {
    "no safetensors": lambda f: (f / "model.safetensors").unlink(),
    "pickle beside": lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
    "code beside": lambda f: (f / "modeling_x.py").write_text(""),
    "remote code": ask_for_code,
    "cut weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
    "no weights inside": lambda f: (f / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}"),
    "a dtype that nobody knows": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(dtype="F7")),
    "a shape of another size": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(shape=[3])),
    "a hole between tensors": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(data_offsets=[4, 12])),
    "broken config": lambda f: (f / "config.json").write_text("{"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_unsafe_model_folders_are_refused(api, services, base, tmp_path, name):
    """422 naming `path`; no model is made."""
    path = damaged(base, tmp_path / "m", BAD_FOLDERS[name])
    assert_problem(api.post("/v1/models", json=registration(base, path=path)), 422, "path")
    assert counts(services)[0] == 0


BAD_CORPORA = {
    "empty": "",
    "too few": "\n".join(f"line {i}" for i in range(19)),
    "blank lines": "\n" * 100,
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_heldout_that_cannot_set_a_threshold_is_refused(api, base, tmp_path, name):
    """422 naming `heldout_path`."""
    (tmp_path / "h.txt").write_text(BAD_CORPORA[name])
    answer = api.post("/v1/models", json=registration(base, heldout_path=str(tmp_path / "h.txt")))
    assert_problem(answer, 422, "heldout_path")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("txt", b""), ("jsonl", b'{"text": "a"}\nnot json\n'), ("jsonl", b'{"no": 1}\n'), ("csv", b"a,b\n1,2\n"),
        ("txt", b"\xff\xfe"),
    ],
)  # fmt: skip
def test_unreadable_retain_is_refused(api, base, tmp_path, suffix, content):
    """422 naming `retain_path`."""
    (tmp_path / f"r.{suffix}").write_bytes(content)
    answer = api.post("/v1/models", json=registration(base, retain_path=str(tmp_path / f"r.{suffix}")))
    assert_problem(answer, 422, "retain_path")


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"path": "/nowhere"}, 422, "path"), ({"path": "no such/hub id!"}, 422, "path"),
        ({"retain_path": "/nowhere"}, 422, "retain_path"), ({"name": "No Spaces"}, 422, "name"),
        ({"policy": {"rank": 0}}, 422, "policy.rank"), ({"policy": {"loss": "x"}}, 422, "policy.loss"),
        ({"policy": {"surprise": 1}}, 422, "policy.surprise"), ({"extra": 1}, 422, "extra"),
    ],
)  # fmt: skip
def test_bad_registrations_name_their_field(api, base, changes, status, field):
    """The same form as everywhere."""
    assert_problem(api.post("/v1/models", json=registration(base, **changes)), status, field)


def test_a_name_is_taken_once(api, base, model):
    """409, and the first one stands."""
    assert_problem(api.post("/v1/models", json=registration(base)), 409, "name")


def test_corpora_may_be_jsonl_csv_or_lines(api, base, tmp_path):
    """All three give the same number of texts."""
    lines = [f"text number {i}" for i in range(25)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("id,text\n" + "\n".join(f'{i},"{t}"' for i, t in enumerate(lines)))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
    for path in sorted(tmp_path.glob("?.*")):
        made = api.post("/v1/models", json=registration(base, name=f"m-{path.suffix[1:]}", heldout_path=str(path)))
        assert made.json()["heldout_records"] == 25


def test_health_metrics_and_openapi_need_no_key(api, model):
    """And say nothing personal."""
    api.post(REQUESTS, json=body())
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        answer = api.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert "Zoraida" not in answer.text
    assert 'unlearnd_requests{status="pending"} 1.0' in api.get("/metrics").text
    document = api.get("/openapi.json").json()
    assert document["components"]["schemas"]["RequestIn"]["examples"]
    assert "application/problem+json" in document["paths"][REQUESTS]["post"]["responses"]["422"]["content"]


def test_unknown_paths_and_methods_are_problems(api):
    """404 and 405 in the same form."""
    assert_problem(api.get("/v1/nothing"), 404)
    assert_problem(api.put(REQUESTS), 405)


def test_accepting_works_without_the_broker(api, services, model):
    """Messages are hints: with no broker a request is taken all the same."""
    from service.queue import Queue

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        services.queue = Queue(f"redis://127.0.0.1:{probe.getsockname()[1]}/0")
    assert api.post(REQUESTS, json=body()).status_code == 202


def test_a_deadline_is_extended_once_with_a_reason_and_on_record(api, services, model):
    """Only an open request's, before it has passed; the log has it, and metrics say how long is left."""
    request = api.post(REQUESTS, json=body()).json()
    path = f"{REQUESTS}/{request['id']}"
    assert_problem(api.post(f"{path}/extend", json={"reason": SECRET}), 422, "reason")
    assert_problem(api.post(f"{REQUESTS}/{uuid4()}/extend", json={"reason": "complexity"}), 404)
    before = metric(api, "unlearnd_next_deadline_seconds")
    found = api.post(f"{path}/extend", json={"reason": "complexity"}).json()
    assert found["extension_reason"] == "complexity"
    assert found["due_at"] > request["due_at"]
    more = datetime.fromisoformat(found["due_at"]) - datetime.fromisoformat(request["due_at"])
    assert timedelta(days=58) <= more <= timedelta(days=62)
    after = metric(api, "unlearnd_next_deadline_seconds")
    assert abs(after - before - more.total_seconds()) < 60
    with services.db.transaction() as session:
        last = session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index.desc())).first()
    entry = json.loads(last)
    assert (entry["kind"], entry["ref"], entry["due"]) == ("request.extended", request["ref"], found["due_at"][:10])
    assert_problem(api.post(f"{path}/extend", json={"reason": "complexity"}), 409)
    late = api.post(REQUESTS, json=body(received_at=(datetime.now(UTC) - timedelta(days=90)).isoformat())).json()
    assert_problem(api.post(f"{REQUESTS}/{late['id']}/extend", json={"reason": "complexity"}), 409)
    assert metric(api, "unlearnd_next_deadline_seconds") < 0
    assert metric(api, "unlearnd_requests_overdue") == 1
    other = api.post(REQUESTS, json=body()).json()
    api.delete(f"{REQUESTS}/{other['id']}")
    assert_problem(api.post(f"{REQUESTS}/{other['id']}/extend", json={"reason": "complexity"}), 409)


def metric(api, name: str) -> float:
    """A gauge without labels."""
    (line,) = [line for line in api.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])
