"""Callbacks on real sockets: repeated until they arrive, bounded in time."""

import contextlib
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from service.db.tables import DeletionRequest, Outbox
from service.steps.upkeep.deliver import deliver_callbacks
from tests.receiver import tar_pit
from tests.service.conftest import REQUESTS, submit


def test_a_callback_that_cannot_be_opened_keeps_no_other_waiting(api, services, model):
    """It counts as an attempt and is put off; the one behind it is looked at in the same call."""
    for _ in range(2):
        request = submit(api, callback_url="http://127.0.0.1:65000/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(callback_url=b"not what was sealed"))
    assert deliver_callbacks(services) == 0
    with services.db.transaction() as session:
        assert session.scalars(select(Outbox.attempts)).all() == [1, 1]


class Listener(BaseHTTPRequestHandler):
    """A submitter's callback endpoint: refuses the first call, takes the second."""

    calls: list[dict] = []  # noqa: RUF012
    bodies: list[tuple[bytes, dict]] = []  # noqa: RUF012

    def do_POST(self):
        """Keep the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append((body, dict(self.headers)))
        self.calls.append(json.loads(body))
        self.send_response(500 if len(self.calls) == 1 else 204)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def listening(server: HTTPServer):
    """A server that serves meanwhile."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_receiver_that_trickles_costs_its_time_and_no_more(api, services, model):
    """The time-out is for the whole of a callback, not for each of its bytes."""
    services.settings.callback_seconds = 0.5
    with tar_pit() as pit:
        request = submit(api, callback_url=f"{pit.url}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        once = iter([True, False])  # on a busy machine the second attempt may be due before the first is stored
        assert deliver_callbacks(services, go_on=lambda: next(once)) == 0  # though the receiver never ends its answer
        with services.db.transaction() as session:
            assert session.scalar(select(Outbox.attempts)) == 1


def test_callbacks_are_made_until_they_arrive(api, services, model):
    """A refused call is made again after a back-off, then never again."""
    with listening(HTTPServer(("127.0.0.1", 0), Listener)) as server:
        request = submit(api, callback_url=f"http://127.0.0.1:{server.server_port}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        assert deliver_callbacks(services) == 0
        assert deliver_callbacks(services) == 0
        assert len(Listener.calls) == 1
        (callback,) = api.get(f"{REQUESTS}/{request['id']}").json()["callbacks"]
        assert callback == {"status": "cancelled", "attempts": 1, "delivered_at": None, "given_up": False}
        with services.db.transaction() as session:
            (entry,) = session.scalars(select(Outbox))
            assert entry.next_at > datetime.now(UTC)
            entry.next_at = datetime.now(UTC)
        assert deliver_callbacks(services) == 1
        assert deliver_callbacks(services) == 0
    (callback,) = api.get(f"{REQUESTS}/{request['id']}").json()["callbacks"]
    assert (callback["attempts"], callback["delivered_at"] is None) == (2, False)
    assert [c["id"] for c in Listener.calls] == [request["id"]] * 2
    assert Listener.calls[0]["status"] == "cancelled"
    secret = api.get("/v1/api-keys/self/webhook-secret").json()["webhook_secret"]
    for body, headers in Listener.bodies:
        assert Webhook(secret).verify(body, headers)["id"] == request["id"]
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body + b" ", headers)
    assert len({headers["webhook-id"] for _, headers in Listener.bodies}) == 1  # the same message, told again
    other = api.post("/v1/api-keys", json={"name": "other", "scopes": ["submit"]}).json()["webhook_secret"]
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(*Listener.bodies[0])


class Elsewhere(BaseHTTPRequestHandler):
    """A receiver that sends callers on to where it would like them to go."""

    seen: list[str] = []  # noqa: RUF012

    def do_POST(self):
        """Redirect."""
        self.seen.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", "/inside")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_a_redirect_is_not_followed(api, services, model):
    """It is no success, and nobody goes where it points."""
    with listening(HTTPServer(("127.0.0.1", 0), Elsewhere)) as server:
        request = submit(api, callback_url=f"http://127.0.0.1:{server.server_port}/cb")
        api.delete(f"{REQUESTS}/{request['id']}")
        assert deliver_callbacks(services) == 0
    assert Elsewhere.seen == ["/cb"]
