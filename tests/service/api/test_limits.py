"""Too much is refused, while everybody else is served."""

import socket
import threading

import httpx
from sqlalchemy import text

from service.local.process import wait_until
from tests.service.served import served


def test_more_than_can_be_worked_on_is_refused_not_queued(services, model, new_key):
    """With the table locked, requests pile up to the limit; the others get 503 with Retry-After, and none is lost."""
    headers = {"Authorization": f"Bearer {new_key('submit')}"}
    body = {"model": "tiny", "records": [{"text": "a record"}]}
    answers: list[httpx.Response] = []
    with served(services, max_requests=4) as address:
        url = f"http://{address[0]}:{address[1]}"

        def submit() -> None:
            answers.append(
                httpx.post(f"{url}/v1/deletion-requests", json=body, headers=headers, trust_env=False, timeout=60)
            )

        threads = [threading.Thread(target=submit) for _ in range(10)]
        with services.db.transaction() as session:
            session.execute(text("LOCK TABLE deletion_requests IN EXCLUSIVE MODE"))
            for thread in threads:
                thread.start()
            assert wait_until(lambda: len(answers) == 6, 20)
            assert {a.status_code for a in answers} == {503}
            assert all(int(a.headers["Retry-After"]) >= 1 for a in answers)
            assert answers[0].json()["code"] == "busy"
            assert httpx.get(f"{url}/livez", trust_env=False, timeout=60).status_code == 200
            assert len(answers) == 6  # the table was locked until then
        for thread in threads:
            thread.join()
        assert sorted(a.status_code for a in answers) == [202] * 4 + [503] * 6
        answer = httpx.get(f"{url}/v1/deletion-requests", headers=headers, trust_env=False, timeout=60).json()["items"]
        assert {f["id"] for f in answer} == {a.json()["id"] for a in answers if a.status_code == 202}


def test_bodies_that_do_not_come_keep_nobody_out(services, new_key):
    """As many half bodies as there may be requests, and one more: others are answered all the same."""
    secret = new_key("submit")
    key = f"Authorization: Bearer {secret}\r\nContent-Type: application/json"
    head = f"POST /v1/deletion-requests HTTP/1.1\r\nHost: x\r\n{key}\r\nContent-Length: 100\r\n\r\n{{".encode()
    with served(services, max_requests=3, request_seconds=60) as address:
        url, headers = f"http://{address[0]}:{address[1]}/v1/deletion-requests", {"Authorization": f"Bearer {secret}"}
        # from here on the key is remembered
        assert httpx.get(url, headers=headers, trust_env=False, timeout=60).status_code == 200
        slow = [socket.create_connection(address) for _ in range(4)]
        for client in slow:
            client.sendall(head)
        # waits less long than the server waits for the bodies
        assert httpx.get(url, headers=headers, trust_env=False, timeout=30).status_code == 200
        for client in slow:
            client.close()


def test_an_oversized_body_is_refused_before_it_is_read(services, new_key):
    """413 comes back though not a byte of the announced body was sent."""
    with served(services) as address, socket.create_connection(address) as client:
        head = f"POST /v1/deletion-requests HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {new_key('submit')}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n".encode())
        client.settimeout(60)
        assert b" 413 " in client.recv(1 << 16).split(b"\r\n")[0]
