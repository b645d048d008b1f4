"""One client that takes all it can, against a server process: it stays small, and others are answered meanwhile."""

import json
import select
import threading
from contextlib import ExitStack

import httpx
import pytest
from sqlalchemy import text

from service.api.limits import MAX_BUFFERED_BODIES
from service.local.process import wait_until
from tests.service.api.submissions import REQUESTS, assert_problem, body
from tests.service.served import server_process

MIB = 2**20
BODY = 8 * MIB
MOST_GROWTH = 150  # MiB
WAITING = text(  # pg_stat_activity would not do: a transaction sees the connections of its first look at it
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'deletion_requests'::regclass "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def server(services, model):
    """A server process with the limits that an operator gets."""
    with server_process(services) as server:
        yield server


def upload_head(key: str | None) -> bytes:
    """The head of a submission with a body of the largest size."""
    lines = [f"POST {REQUESTS} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {BODY}"]
    return "\r\n".join([*lines, *([f"Authorization: Bearer {key}"] if key else []), "", ""]).encode()


def test_strangers_cannot_fill_the_memory_for_bodies(server, new_key):
    """They hear that a key is needed, however much they send; a submission is accepted meanwhile."""
    uploads = [server.connect() for _ in range(40)]
    for number, upload in enumerate(uploads):
        upload.settimeout(10)
        upload.sendall(upload_head("unl_unknown" if number % 2 else None))
        assert upload.recv(65_536).startswith(b"HTTP/1.1 401 ")
        upload.sendall(b"x" * (BODY - 1))  # it is read and forgotten: there was an answer already
    with server.client(new_key("submit")) as client:
        assert client.post(REQUESTS, json=body()).status_code == 202
    assert server.grown_mib < MOST_GROWTH
    for upload in uploads:
        upload.close()


def test_a_webhook_is_refused_before_its_signature_is_checked_if_it_is_large(server):
    """Its bytes have to be read without a key, so there may be few."""
    with server.client() as client:
        answer = client.post("/connect/datagrail/tiny", content=b"x" * 70_000)
        assert_problem(answer, 413, "body")
        answer = client.post("/connect/datagrail/tiny", content=(b"x" * 10_000 for _ in range(7)))
        assert_problem(answer, 413, "body")


def test_one_key_cannot_fill_the_memory_for_bodies(server, services, new_key):
    """With its share it hears 503. Another key's body of the largest size has room."""
    greedy, other = new_key("submit"), new_key("submit")
    large = json.dumps(body()).encode()
    json_type = {"Content-Type": "application/json"}
    with ExitStack() as stack, server.client(other) as client:
        share = int(MAX_BUFFERED_BODIES * services.settings.share)
        uploads = [stack.enter_context(server.connect()) for _ in range(share + 1)]
        for upload in uploads:
            upload.sendall(upload_head(greedy))
            upload.sendall(b" " * (BODY - 1))
        refused = select.select(uploads, [], [], 20)[0]  # one goes, and the others fit
        assert [upload.recv(65_536)[:13] for upload in refused] == [b"HTTP/1.1 503 "]
        answer = client.post(REQUESTS, content=large + b" " * (BODY - len(large)), headers=json_type)
        assert answer.status_code == 202


def test_one_key_cannot_take_every_thread_and_connection(server, services, new_key):
    """Sixty of its requests wait for a locked table. Other keys and strangers are answered meanwhile."""
    greedy, other = new_key("read"), new_key("read")
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(server.get(REQUESTS, greedy))) for _ in range(60)]
    with services.db.transaction() as session:
        session.execute(text("LOCK TABLE deletion_requests IN ACCESS EXCLUSIVE MODE"))
        for thread in threads:
            thread.start()
        assert wait_until(lambda: session.scalar(WAITING) == services.settings.key_requests, 60)
        assert server.get("/v1/models", other).status_code == 200
        assert server.get("/readyz").status_code == 200
        assert server.get("/v1/models", "unl_unknown").status_code == 401
        assert not answers
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("records", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_one_keys_submissions_take_one_connection_and_no_thread(server, services, new_key, records):
    """Sixty of them wait for a locked table. Whoever asks for something else is answered, and then all are stored."""
    greedy, other = new_key("submit"), new_key("read")
    content = body(records=[{"text": f"record {number}"} for number in range(records)])
    answers: list[int] = []

    def submit() -> None:
        with server.client(greedy) as client:
            answers.append(client.post(REQUESTS, json=content).status_code)

    submit()  # an epoch key is there from now on
    threads = [threading.Thread(target=submit) for _ in range(60)]
    with services.db.transaction() as session:
        session.execute(text("LOCK TABLE deletion_requests IN EXCLUSIVE MODE"))
        for thread in threads:
            thread.start()
        assert wait_until(lambda: session.scalar(WAITING) == 1, 60)
        for _ in range(30):
            assert server.get("/v1/models", other).status_code == 200
        assert session.scalar(WAITING) == 1
    for thread in threads:
        thread.join()
    assert answers == [202] * 61


HUGE = {
    "records that are strings": b'{"model": "tiny", "records": [' + b'"",' * (BODY // 3 - 20) + b'""]}',
    "unknown fields": b"{" + b",".join(b'"k%d":1' % i for i in range(BODY // 13)) + b"}",
    "empty lists": b"[" + b"[]," * (BODY // 3 - 10) + b"[]]",
    "numbers": b'{"model": "tiny", "records": [' + b"7," * (BODY // 2 - 20) + b"7]}",
    "nested": b"[" * (BODY - 1),
    "escaped quotes": b'{"model": "' + b'\\"' * (BODY // 2 - 10) + b'"}',
    "quotes after backslashes": b"[" + b'"\\\\",' * (BODY // 5 - 10) + b'""]',
}


def test_a_body_of_many_values_is_refused_before_it_is_parsed(server, new_key):
    """Each of them once took a kilobyte of memory and of the answer."""
    key, other = new_key("submit"), new_key("read")
    with server.client(key) as client:
        for name, content in HUGE.items():
            answer = client.post(REQUESTS, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, name
            assert len(answer.content) < 10_000, name
            assert server.get(REQUESTS, other).status_code == 200
    assert server.grown_mib < MOST_GROWTH


def test_a_body_of_the_largest_size_is_accepted(services, model, new_key):
    """Texts may hold as many commas, quotes and backslashes as they like."""
    record = '{"a\\": [\\\\, "b"]}, ' * 1500
    with server_process(services, max_records=256) as server, server.client(new_key("submit")) as client:
        content = json.dumps(body(records=[{"text": record}] * 200)).encode()
        assert 5 * MIB < len(content) < BODY
        answer = client.post(REQUESTS, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["records"]) == (202, 200)
