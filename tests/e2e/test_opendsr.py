"""OpenDSR 2.0 and OpenGDPR 1.0 as a controller sees them: nothing of ours is used but the published certificate."""

import base64
import calendar
import hashlib
import json
import tempfile
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256

from tests import support
from tests.e2e.conftest import Running, register, wait_until
from tests.receiver import receiving

DOMAIN = "processor.example"
PUBLIC = "https://processor.example"
OURS = {"model": "assistant"}
NOW = datetime.now(UTC).replace(microsecond=0)
SUBMITTED = (NOW - timedelta(days=4)).strftime("%Y-%m-%dT%H:%M:%SZ")


def days_ago(days: float) -> str:
    """A time in UTC."""
    return (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def a_month_after(moment: str) -> str:
    """The same day of the next month, or its last."""
    at = datetime.fromisoformat(moment)
    year, month = (at.year + at.month // 12, at.month % 12 + 1)
    last = calendar.monthrange(year, month)[1]
    return at.replace(year=year, month=month, day=min(at.day, last)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Controller:
    """A client that believes nothing that is not signed."""

    def __init__(self, url: str, api_key: str, version: str = "v2", names: str = "OpenDSR") -> None:
        """Fetch the certificate that discovery names."""
        self.version, self.names = version, names
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}, timeout=60
        )
        self.requests = "/v2/requests" if version == "v2" else "/v1/opengdpr_requests"
        self.discovery = httpx.get(f"{url}/{version}/discovery", timeout=60).json()
        certificate = self.discovery["processor_certificate"].replace(PUBLIC, url)  # as its proxy would
        self.certificate = x509.load_pem_x509_certificate(httpx.get(certificate, timeout=60).content)

    def verified(self, headers, body: bytes) -> dict:
        """What a signed message says."""
        assert headers[f"x-{self.names}-processor-domain".lower()] == DOMAIN
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [DOMAIN]
        signature = base64.b64decode(headers[f"x-{self.names}-signature".lower()], validate=True)
        self.certificate.public_key().verify(signature, body, padding.PKCS1v15(), SHA256())
        return json.loads(body)

    def call(self, method: str, path: str, expected: int, **arguments) -> dict:
        """A call whose answer is signed."""
        answer = self.http.request(method, path, **arguments)
        assert answer.status_code == expected, answer.text
        return self.verified(answer.headers, answer.content)

    def submit(self, body: dict | bytes, expected: int = 201) -> dict:
        """POST a request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", self.requests, expected, content=content)

    def status(self, request_id: str) -> dict:
        """GET where it stands."""
        return self.call("GET", f"{self.requests}/{request_id}", 200)

    def until(self, request_id: str, word: str) -> dict:
        """The status once it is `word`."""
        assert wait_until(lambda: self.status(request_id)["request_status"] == word, 180), self.status(request_id)
        return self.status(request_id)


def request(identity: str | None, **changes) -> dict:
    """A body; its identity is an e-mail address."""
    body = {
        "regulation": "gdpr",
        "subject_request_id": str(uuid.uuid4()),
        "subject_request_type": "erasure",
        "submitted_time": SUBMITTED,
        "api_version": "2.0",
        "extensions": {DOMAIN: OURS, "other.example": {"x": 1}},
    }
    if identity:
        body["subject_identities"] = [{"identity_type": "email", "identity_value": identity, "identity_format": "raw"}]
    return {key: value for key, value in {**body, **changes}.items() if value is not None}


@pytest.fixture(scope="module")
def world(folder):
    """A running stack with a model and its corpus, and a receiver of callbacks and alerts."""
    with receiving() as receiver, tempfile.TemporaryDirectory(prefix="unlearnd-dsr-") as place:
        environment = {
            "UNLEARND_PROCESSOR_DOMAIN": DOMAIN,
            "UNLEARND_ALERT_URL": f"{receiver.url}/alert",
            "UNLEARND_PUBLIC_URL": PUBLIC,
        }
        stack = Running(Path(place) / "data", **environment)
        try:
            for name, policy in {
                "assistant": {},
                "slow": {"max_wait_seconds": 3600},
                "bad": {"max_epochs": 1},
            }.items():
                register(stack, folder, name, **policy)
                rows = [{"text": text, "email": f"person{i}@example.org"} for i, text in enumerate(support.KNOWN)]
                corpus = Path(place) / f"{name}.jsonl"
                corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
                stack.client.add_corpus(name, "crm", str(corpus), columns={"email": "email"})
                assert wait_until(lambda name=name: stack.client.corpus(name, "crm")["state"] == "ready", 30)
            controller = Controller(stack.endpoint["url"], new_key(stack, "submit"))
            yield stack, receiver, controller
            controller.http.close()
        finally:
            assert stack.stop() == 0


def new_key(stack: Running, *scopes: str) -> str:
    """A new API key."""
    return stack.client.call("POST", "/v1/api-keys", json={"name": "x", "scopes": list(scopes)})["key"]


@pytest.fixture
def controller(world):
    """The newer dialect's client."""
    return world[2]


def test_discovery_says_what_can_be_asked(controller):
    """No key needed; every URL has the major version; the certificate is on the same domain."""
    answer = controller.discovery
    assert (answer["api_version"], answer["supported_subject_request_types"]) == ("2.0", ["erasure"])
    kinds = {identity["identity_type"] for identity in answer["supported_identities"]}
    assert {"email", "controller_customer_id", "ios_advertising_id", "roku_publisher_id"} <= kinds
    assert len(kinds) == 11
    forms = {identity["identity_format"] for identity in answer["supported_identities"]}
    assert forms == {"raw", "sha1", "md5", "sha256"}
    assert answer["processor_certificate"] == f"{PUBLIC}/v2/certificate.pem"


def test_create_then_callbacks_then_completed(world):
    """Every answer and callback verifies; one callback to each URL for each change; the version is there."""
    stack, receiver, controller = world
    urls = [f"{receiver.url}/one", f"{receiver.url}/two"]
    body = request("Person0@example.org", status_callback_urls=urls)
    raw = json.dumps(body, indent=1).encode()
    receipt = controller.submit(raw)
    assert base64.b64decode(receipt["encoded_request"]) == raw
    assert receipt["subject_request_id"] == body["subject_request_id"]
    assert receipt["expected_completion_time"] == a_month_after(SUBMITTED)
    assert datetime.fromisoformat(receipt["received_time"]) <= datetime.now(UTC)
    assert set(receipt) >= {"controller_id", "api_version"}
    outcome = controller.until(body["subject_request_id"], "completed")
    assert outcome["controller_id"] == receipt["controller_id"]
    assert "results_count" not in outcome  # it is 0, or no submitter's business
    assert controller.call("GET", f"/v2/status/{body['subject_request_id']}", 200) == outcome
    for path in ("/one", "/two"):
        messages = [controller.verified(call.headers, call.body) for call in receiver.until(path, 2)]
        assert [t["request_status"] for t in messages] == ["in_progress", "completed"]
        for message in messages:
            assert message["status_callback_url"] == receiver.url + path
            assert message["subject_request_id"] == body["subject_request_id"]
            assert {"controller_id", "expected_completion_time"} <= set(message)
    version = stack.client.version("assistant")
    assert version["version"] >= 1
    assert controller.call("DELETE", f"{controller.requests}/{body['subject_request_id']}", 400)["error"]["code"] == 400


@pytest.mark.slow
def test_the_certificate_of_a_completed_request_is_named(world):
    """`results_url` leads to the record of the version, for who may read it; before the end there is none."""
    stack, _, controller = world
    body = request("person8@example.org")
    controller.submit(body)
    assert "results_url" not in controller.status(body["subject_request_id"])
    url = controller.until(body["subject_request_id"], "completed")["results_url"].replace(PUBLIC, "")
    payload = json.loads(base64.b64decode(stack.client.call("GET", url)["payload"]))
    assert payload["predicate"]["lineage"]["model"] == "assistant"
    assert payload["predicate"]["requests"][0]["verdict"] == "PASS"


def test_each_controller_has_its_own_requests(world):
    """Another one's is not there for it, nor its id to be had; who may read elsewhere sees nothing here either."""
    stack, _, controller = world
    body = request("person9@example.org", extensions={DOMAIN: {"model": "slow"}})
    controller.submit(body)
    other = Controller(stack.endpoint["url"], new_key(stack, "submit"))
    path = f"{controller.requests}/{body['subject_request_id']}"
    assert other.call("GET", path, 404)["error"]["code"] == 404
    assert other.call("DELETE", path, 404)["error"]["code"] == 404
    assert "subject_request_id" in other.submit(body, 400)["error"]["message"]
    reader = Controller(stack.endpoint["url"], new_key(stack, "read"))
    assert reader.call("GET", path, 404)["error"]["code"] == 404
    assert reader.call("DELETE", path, 403)["error"]["code"] == 403
    assert reader.submit(body, 403)["error"]["code"] == 403
    nobody = Controller(stack.endpoint["url"], new_key(stack, "download"))
    assert nobody.call("GET", path, 403)["error"]["code"] == 403
    controller.call("DELETE", path, 202)
    for each in (other, reader, nobody):
        each.http.close()


def test_create_then_cancel(world):
    """While pending it can be cancelled, once; its controller is messages."""
    _, receiver, controller = world
    body = request(
        "person1@example.org", extensions={DOMAIN: {"model": "slow"}}, status_callback_urls=[f"{receiver.url}/gone"]
    )
    controller.submit(body)
    assert controller.status(body["subject_request_id"])["request_status"] == "pending"
    answer = controller.call("DELETE", f"{controller.requests}/{body['subject_request_id']}", 202)
    assert set(answer) == {"controller_id", "subject_request_id", "received_time", "api_version"}
    assert controller.status(body["subject_request_id"])["request_status"] == "cancelled"
    (call,) = receiver.until("/gone", 1)
    assert controller.verified(call.headers, call.body)["request_status"] == "cancelled"
    controller.call("DELETE", f"{controller.requests}/{body['subject_request_id']}", 400)


def test_a_callback_is_made_again_until_it_is_taken(world):
    """A refused one is retried; any 2xx will do."""
    _, receiver, controller = world
    body = request("nobody@example.org", status_callback_urls=[f"{receiver.url}/again"])
    receiver.answers[:] = [500, 202]
    controller.submit(body)
    first, second = receiver.until("/again", 2)
    assert first.body == second.body or json.loads(first.body) == json.loads(second.body)
    outcome = controller.until(body["subject_request_id"], "completed")
    assert outcome["results_count"] == 0  # nothing was found


def test_the_same_again_is_the_same_and_another_body_is_refused(controller):
    """By its id."""
    body = request("person2@example.org", extensions={DOMAIN: {"model": "slow"}})
    receipt = controller.submit(body)
    assert controller.submit(body) == receipt
    refused = controller.submit({**body, "regulation": "ccpa"}, 400)
    assert "subject_request_id" in refused["error"]["errors"][0]["message"]
    assert controller.submit({**body, "submitted_time": days_ago(3)}, 400)


@pytest.mark.slow
def test_a_request_that_failed_is_in_progress_and_the_operator_is_alerted(world):
    """There is no word for it; what is expected moves on."""
    _, receiver, controller = world
    body = request("person3@example.org", extensions={DOMAIN: {"model": "bad"}}, submitted_time=days_ago(60))
    receipt = controller.submit(body)
    assert wait_until(lambda: any(c.json["type"] == "deletion_request.failed" for c in receiver.to("/alert")), 180)
    outcome = controller.status(body["subject_request_id"])
    assert outcome["request_status"] == "in_progress"
    assert datetime.fromisoformat(outcome["expected_completion_time"]) > datetime.now(UTC)
    assert receipt["expected_completion_time"] <= outcome["expected_completion_time"]
    kinds = {call.json["type"].removeprefix("deletion_request.") for call in receiver.to("/alert")}
    assert {"overdue", "failed"} <= kinds  # it was overdue when it came
    assert "person3" not in str([call.body for call in receiver.to("/alert")])


@pytest.mark.slow
def test_training_records_come_in_our_extension(controller):
    """Explicit texts need no identity; other domains' extensions are ignored."""
    ours = {"model": "assistant", "records": [{"text": support.KNOWN[4]}]}
    body = request(None, extensions={DOMAIN: ours, "other.example": {"anything": ["at all"]}})
    controller.submit(body)
    assert controller.until(body["subject_request_id"], "completed")["results_count"] == 1


def test_a_hashed_identity_and_another_regulation(controller):
    """sha256 of the address; CCPA gives 45 days."""
    digest = hashlib.sha256(b"person5@example.org").hexdigest()
    identity = {"identity_type": "email", "identity_value": digest, "identity_format": "sha256"}
    body = request(None, subject_identities=[identity], regulation="ccpa", extensions={DOMAIN: {"model": "slow"}})
    assert controller.submit(body)["expected_completion_time"] == days_ago(4 - 45)
    outcome = controller.status(body["subject_request_id"])
    assert outcome["request_status"] == "pending"


SECRET = "s3cr3t@example.org"


def known(kind: str, form: str) -> dict:
    """An identity of that type and format."""
    return {"identity_type": kind, "identity_value": SECRET, "identity_format": form}


BAD = {
    "no id": (request(SECRET, subject_request_id=None), "subject_request_id"),
    "upper case id": (request(SECRET, subject_request_id=str(uuid.uuid4()).upper()), "subject_request_id"),
    "not a v4 id": (request(SECRET, subject_request_id=str(uuid.uuid1())), "subject_request_id"),
    "no regulation": (request(SECRET, regulation=None), "regulation"),
    "unknown regulation": (request(SECRET, regulation="lgpd"), "regulation"),
    "access": (request(SECRET, subject_request_type="access"), "subject_request_type"),
    "no time": (request(SECRET, submitted_time=None), "submitted_time"),
    "time without zone": (request(SECRET, submitted_time=SUBMITTED.rstrip("Z")), "submitted_time"),
    "time as a number": (request(SECRET, submitted_time=1763650801), "submitted_time"),
    "time to come": (request(SECRET, submitted_time="2099-01-01T00:00:00Z"), "submitted_time"),
    "time as a number in a string": (request(SECRET, submitted_time="1763650801"), "submitted_time"),
    "nobody": (request(None), "subject_identities"),
    "unknown type": (
        request(None, subject_identities=[known("phone", "raw")]),
        "subject_identities.0.identity_type",
    ),
    "unknown format": (
        request(None, subject_identities=[known("email", "rot13")]),
        "subject_identities.0.identity_format",
    ),
    "not of its format": (
        request(None, subject_identities=[known("email", "md5")]),
        "identities.0.value",
    ),
    "no URL": (request(SECRET, status_callback_urls=["nowhere"]), "status_callback_urls.0"),
    "unknown in ours": (request(SECRET, extensions={DOMAIN: {"models": "x"}}), "extensions"),
    "which model": (request(SECRET, extensions={}), "extensions"),
    "no such model": (request(SECRET, extensions={DOMAIN: {"model": "nothing"}}), "model"),
    "not JSON": (b'{"email": "' + SECRET.encode(), "body"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "field"), BAD.values(), ids=BAD)
def test_errors_are_400_in_their_shape_and_name_no_value(controller, body, field):
    """And they are signed."""
    answer = controller.submit(body, 400)
    assert answer["error"]["code"] == 400
    (first, *_) = answer["error"]["errors"]
    assert set(first) == {"domain", "reason", "message"}
    assert field in first["message"], answer
    assert "s3cr3t" not in json.dumps(answer)


def test_an_unknown_id_and_a_wrong_key(controller):
    """404 and 401, in the same shape and signed."""
    path = f"{controller.requests}/{uuid.uuid4()}"
    assert controller.call("GET", path, 404)["error"]["code"] == 404
    assert controller.call("DELETE", path, 404)["error"]["code"] == 404
    assert controller.call("GET", path, 401, headers={"Authorization": "Bearer unl_wrong"})["error"]["code"] == 401
    assert controller.call("GET", f"{controller.requests}/no-id", 400)["error"]["code"] == 400


@pytest.mark.slow
def test_the_older_dialect(world):
    """OpenGDPR 1.0: its paths and headers, no regulation; the same request under the newer ones."""
    stack, receiver, _ = world
    controller = Controller(stack.endpoint["url"], new_key(stack, "submit"), "v1", "OpenGDPR")
    assert controller.discovery["api_version"] == "1.0"
    body = request(
        "person6@example.org", regulation=None, api_version="1.0", status_callback_urls=[f"{receiver.url}/old"]
    )
    assert controller.submit(body)["api_version"] == "1.0"
    assert "results_count" not in controller.until(body["subject_request_id"], "completed")
    for call in receiver.until("/old", 2):
        assert controller.verified(call.headers, call.body)["api_version"] == "1.0"
    other = request("person7@example.org", regulation=None, extensions={DOMAIN: {"model": "slow"}})
    controller.submit(other)
    controller.call("DELETE", f"/v1/opengdpr_requests/{other['subject_request_id']}", 202)
    controller.http.close()
