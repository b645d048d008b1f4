"""Fides, Transcend and DataGrail: a stand-in plays the platform's side, and a real job comes to its end."""

import base64
import hashlib
import hmac
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests import support
from tests.e2e.conftest import Running, register, wait_until
from tests.receiver import receiving

FIDES = Path(__file__).parents[2] / "docs" / "guides" / "fides"
SECRET, BAD_SECRET, INTERNAL, BEARER = "datagrail-secret", "another-secret", "sombra-internal", "transcend-key"
SECRETS = {"assistant": SECRET, "bad": BAD_SECRET}
SOMBRA = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="module")
def world(folder):
    """A stack that is set up for all three, and a receiver that is each of them."""
    with receiving() as receiver, tempfile.TemporaryDirectory(prefix="unlearnd-con-") as place:
        public = Path(place) / "sombra.pem"
        public.write_bytes(SOMBRA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        environment = {
            "FIDES_URL": f"{receiver.url}/fides",
            "TRANSCEND_URL": f"{receiver.url}/sombra",
            "TRANSCEND_API_KEY": BEARER,
            "TRANSCEND_INTERNAL_KEY": INTERNAL,
            "TRANSCEND_PUBLIC_KEY": str(public),
            "TRANSCEND_ORGANIZATION": "acme",
            "IDENTIFIER_TYPES": '{"member": "controller_customer_id"}',
            "DATAGRAIL_SECRETS": json.dumps(SECRETS),
        }
        stack = Running(Path(place) / "data", **{f"UNLEARND_{name}": value for name, value in environment.items()})
        try:
            for name, policy in {"assistant": {}, "bad": {"max_epochs": 1}}.items():
                register(stack, folder, name, **policy)
                rows = [{"text": text, "email": f"person{i}@example.org"} for i, text in enumerate(support.KNOWN)]
                corpus = Path(place) / f"{name}.jsonl"
                corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
                stack.client.add_corpus(name, "crm", str(corpus), columns={"email": "email"})
                assert wait_until(lambda name=name: stack.client.corpus(name, "crm")["state"] == "ready", 30)
            yield stack, receiver, Path(stack.endpoint["api_key_file"]).read_text()
        finally:
            assert stack.stop() == 0


class Fides:
    """Does what Fides does with a SaaS connector: fills placeholders in as strings, and compares one value."""

    def __init__(self, url: str, secrets: dict[str, str], endpoints: Path | None = None) -> None:
        """Load the connector that the documentation ships."""
        text = (FIDES / "config.yml").read_text().replace("<instance_fides_key>", "unlearnd_1")
        config = yaml.safe_load(text)["saas_config"]
        assert {p["name"] for p in config["connector_params"]} == set(secrets)
        dataset = yaml.safe_load((FIDES / "dataset.yml").read_text())["dataset"][0]
        described = yaml.safe_load(endpoints.read_text())["endpoints"] if endpoints else config["endpoints"]
        assert [c["name"] for c in dataset["collections"]] == [e["name"] for e in described]
        self.request, self.test, self.values = described[0]["requests"]["delete"], config["test_request"], dict(secrets)
        token = self.filled(config["client_config"]["authentication"]["configuration"]["token"])
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def filled(self, text: str) -> str:
        """With every placeholder replaced."""
        for name, value in self.values.items():
            text = text.replace(f"<{name}>", value)
        assert "<" not in text, text
        return text

    def erase(self, **values: str) -> httpx.Response:
        """The initial request, with its identities and built-in values."""
        self.values |= values
        headers = {h["name"]: self.filled(h["value"]) for h in self.request.get("headers", [])}
        body = json.loads(self.filled(self.request["body"]))
        return self.http.request(self.request["method"], self.filled(self.request["path"]), json=body, headers=headers)

    def poll(self, answer: httpx.Response) -> bool | None:
        """Whether it is done; None: an error."""
        self.values["correlation_id"] = answer.json()[self.request["correlation_id_path"]]
        status = self.request["async_config"]["configuration"]["status_request"]
        status_answer = self.http.request(status["method"], self.filled(status["path"]))
        if status_answer.status_code != 200:
            return None
        assert status_answer.headers["content-type"] == "application/json"
        return status_answer.json()[status["status_path"]] == status["status_completed_value"]


@pytest.fixture
def fides(world):
    """Make Fides' side for a model."""
    made = []

    def make(model: str = "assistant", endpoints: Path | None = None) -> Fides:
        secrets = {"domain": "ignored", "model": model, "api_key": world[2]}
        made.append(Fides(world[0].endpoint["url"], secrets, endpoints))
        return made[-1]

    yield make
    for each in made:
        each.http.close()


@pytest.mark.slow
def test_fides_polls_until_it_is_done(world, fides):
    """The test request answers; asked again for the same privacy request, it is the same; a version is there."""
    connector = fides()
    assert connector.http.request(connector.test["method"], connector.test["path"]).status_code == 200
    answer = connector.erase(email="person0@example.org", privacy_request_id="pri_1")
    assert answer.status_code == 202, answer.text
    assert connector.erase().json()["id"] == answer.json()["id"]
    assert wait_until(lambda: connector.poll(answer), 180)
    outcome = world[0].client.request(answer.json()["id"])
    assert (outcome["status"], outcome["records"], outcome["results_count"]) == ("completed", 1, 1)
    assert world[0].client.version("assistant")["version"] == outcome["version"]


@pytest.mark.slow
def test_fides_sees_a_failed_job_as_an_error_and_nothing_found_as_done(fides):
    """It has no value for a failure."""
    connector = fides("bad")
    answer = connector.erase(email="person1@example.org", privacy_request_id="pri_2")
    assert wait_until(lambda: connector.poll(answer) is None, 180)
    nobody = fides()
    answer = nobody.erase(email="nobody@example.org", privacy_request_id="pri_3")
    assert wait_until(lambda: nobody.poll(answer), 60)


@pytest.mark.slow
def test_fides_is_called_back(world, fides):
    """On `reply-to`, with its token; a failed job is not received as done."""
    receiver = world[1]
    values = {"reply_to": "/api/v1/request-task/callback", "reply_to_token": "token-1"}
    receiver.answers[:] = [400]  # not awaiting_processing yet: it is called again
    answer = fides(endpoints=FIDES / "callback.yml").erase(
        email="person2@example.org", privacy_request_id="pri_4", **values
    )
    assert answer.status_code == 202, answer.text
    first, again = receiver.until("/fides/api/v1/request-task/callback", 2, 180)
    assert (again.method, again.json) == ("POST", {"rows_masked": 1})
    assert again.headers["authorization"] == first.headers["authorization"] == "Bearer token-1"
    failed = fides("bad", endpoints=FIDES / "callback.yml").erase(
        email="person3@example.org", privacy_request_id="pri_5", **values
    )
    outcome = world[0].client.wait(failed.json()["id"], 180)
    assert outcome["status"] == "failed"
    assert len(receiver.to("/fides/api/v1/request-task/callback")) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "s3cr3t"}, "privacy_request_id"),
        ({"privacy_request_id": "p"}, "identifiers"),
        ({"privacy_request_id": "p", "email": "s3cr3t"}, "subject.identities.0.value"),
    ],
)
def test_what_fides_gets_wrong_is_named(fides, body, field):
    """As everywhere."""
    answer = fides().http.post("/connect/fides/assistant", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert "s3cr3t" not in answer.text


def sombra(core: str, *, key=SOMBRA, **changes) -> str:
    """A token as Sombra signs it."""
    claims = {"scope": "coreIdentifier", "value": core, "aud": "acme", "iat": int(time.time()), **changes}
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return jwt.encode(claims, pem, "ES384")


def transcend(world, model: str, core: str, email: str, nonce: str, token: str | None = None, kind: str = "ERASURE"):
    """Transcend's webhook for one identifier."""
    body = {
        "type": kind,
        "coreIdentifier": {"value": core},
        "requestIdentifier": {"value": email},
        "dataSubject": {"type": "customer"},
        "isTest": False,
        "extras": {
            "profile": {"identifier": email, "type": "email"},
            "dataSilo": {},
            "request": {"id": "r1", "link": "https://app.transcend.io/request/r1", "locale": "en"},
            "organization": {"id": "o", "name": "Acme", "uri": "acme"},
        },
    }
    headers = {"x-sombra-token": token or sombra(core), "x-transcend-nonce": nonce}
    return httpx.post(f"{world[0].endpoint['url']}/connect/transcend/{model}", json=body, headers=headers, timeout=60)


@pytest.mark.slow
def test_transcend_is_told_ready_skipped_or_that_somebody_has_to_look(world):
    """With its nonce and both keys: done, nobody found, failed."""
    receiver = world[1]
    cases = {
        "nonce-done": ("assistant", "person4@example.org", "READY"),
        "nonce-none": ("assistant", "nobody@example.org", "SKIPPED"),
        "nonce-failed": ("bad", "person5@example.org", "ACTION_REQUIRED"),
    }
    for nonce, (model, email, _) in cases.items():
        answer = transcend(world, model, email, email, nonce)
        assert answer.status_code == 200, answer.text
        assert transcend(world, model, email, email, nonce).status_code == 200  # retried by them: the same request
    calls = {call.headers["x-transcend-nonce"]: call for call in receiver.until("/sombra/v1/data-silo", 3, 180)}
    assert set(calls) == set(cases)
    for nonce, call in calls.items():
        assert call.method == "PUT"
        assert call.headers["authorization"] == f"Bearer {BEARER}"
        assert call.headers["x-sombra-authorization"] == f"Bearer {INTERNAL}"
        assert call.json["status"] == cases[nonce][2]
        assert "@" not in call.body.decode()
    assert len(receiver.to("/sombra/v1/data-silo")) == 3


def test_transcend_has_to_prove_itself(world):
    """Only Sombra's key, ES384, the right scope and the identifier that it signed."""
    other = ec.generate_private_key(ec.SECP384R1())
    wrong = (
        sombra("u", key=other),
        sombra("somebody else"),
        sombra("u", scope="other"),
        "nonsense",
        sombra("u", exp=int(time.time()) - 10),
        sombra("u", aud="another tenant"),
        sombra("u", iat=1),
        jwt.encode({"scope": "coreIdentifier", "value": "u"}, "x" * 48, "HS384"),
    )
    for number, token in enumerate(wrong):
        answer = transcend(world, "assistant", "u", "u", f"bad-{number}", token)
        assert answer.status_code == 401, (number, answer.text)
    answer = transcend(world, "assistant", "u", "u", "nonce-access", kind="ACCESS")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "type")


def signed(secret: str, timestamp: str, body: bytes) -> str:
    """The base64 of HMAC-SHA256, as DataGrail says; time, colon and body, which is to be confirmed with it."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b":" + body, hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def datagrail(world, model: str, body: dict, *, secret: str = SECRET, at: datetime | None = None, spoil: bytes = b""):
    """DataGrail's webhook."""
    raw = json.dumps({"integration_name": "unlearnd", "integration_kind": "webhook", **body}).encode()
    timestamp = str(int((at or datetime.now(UTC)).timestamp()))
    headers = {
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": signed(secret, timestamp, raw),
        "User-Agent": "dgclient/1.0",
        "Content-Type": "application/json",
    }
    return httpx.post(
        f"{world[0].endpoint['url']}/connect/datagrail/{model}", content=raw + spoil, headers=headers, timeout=60
    )


@pytest.mark.slow
def test_datagrail_is_told_on_its_callback_url(world):
    """A health check, then deletions that are done, find nobody, and fail."""
    stack, receiver, _ = world
    check = {"request_type": "health_check", "webhook_request_id": "3aa32ca6-e60d-4b71-981a-d1ba258fd712"}
    assert datagrail(world, "assistant", check).json() == {"status": "ok"}
    assert stack.client.call("GET", "/v1/deletion-requests?limit=1")["items"] is not None
    cases = {
        "a": ("assistant", "person8@example.org"),
        "b": ("assistant", "no@example.org"),
        "c": ("bad", "person9@example.org"),
    }
    for name, (model, email) in cases.items():
        body = {
            "request_type": "deletion",
            "webhook_request_id": name,
            "identifiers": {"email": [email]},
            "webhook_callback_url": f"{receiver.url}/datagrail/{name}",
        }
        secret = SECRETS[model]
        assert datagrail(world, model, body, secret=secret).status_code == 202
        assert datagrail(world, model, body, secret=secret).status_code == 202  # theirs once more: the same request
    received = {name: receiver.until(f"/datagrail/{name}", 1, 180) for name in cases}
    outcomes = {name: calls[0].json["status"] for name, calls in received.items()}
    assert outcomes == {"a": "completed", "b": "completed", "c": "failed"}
    for name, (call, *more) in received.items():
        assert not more
        assert call.json["webhook_request_id"] == name
        expected = signed(SECRETS[cases[name][0]], call.headers["x-webhook-timestamp"], call.body)
        assert expected == call.headers["x-webhook-signature"]


def test_identifiers_are_taken_by_their_names_and_no_others(world):
    """A postcode is nobody's customer number; one that is not of its type does not keep the others from counting."""
    body = {"request_type": "deletion", "webhook_request_id": "types", "identifiers": {"zip": "3", "last4": ["1"]}}
    refused = datagrail(world, "assistant", body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "identifiers")
    body["identifiers"] = {"zip": "3", "phone": "nonsense", "email": "nobody@example.org", "member": ["m7"]}
    assert datagrail(world, "assistant", body).status_code == 202
    client = world[0].client
    (latest,) = client.requests(model="assistant", limit=1)["items"]
    assert client.wait(latest["id"], 60)["results_count"] == 0


def test_datagrail_has_to_prove_itself(world):
    """Its secret, a fresh time, and the very bytes."""
    body = {"request_type": "deletion", "webhook_request_id": "x", "identifiers": {"email": "person10@example.org"}}
    assert datagrail(world, "assistant", body, secret="other").status_code == 401
    assert datagrail(world, "assistant", body, spoil=b" ").status_code == 401
    assert datagrail(world, "assistant", body, at=datetime(2026, 1, 1, tzinfo=UTC)).status_code == 401
    assert (
        datagrail(world, "assistant", {**body, "request_type": "access"}).json()["errors"][0]["field"] == "request_type"
    )
    assert (
        datagrail(world, "assistant", {"request_type": "deletion"}).json()["errors"][0]["field"] == "webhook_request_id"
    )
