"""What the platforms sign, and what they do not: each webhook is held to its signature, and counts once."""

import base64
import hashlib
import hmac
import json
import time
import uuid

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr, ValidationError

from service.callbacks.dialects import CALLBACK_BUILDERS, CallbackTarget, Notification
from service.config import Settings
from service.db import requests
from service.privacy.records import request_subject
from tests.service.conftest import REQUESTS, registration
from tests.service.steps.subjects.corpus import corpus_body, fill

SOMBRA = ec.generate_private_key(ec.SECP384R1())
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973  # of P-384
CORE = "maria@example.org"
REPLY = "/api/v1/request-task/callback"


@pytest.fixture
def platforms(services, api, model, base, tmp_path):
    """All three set up, and two models with corpora."""
    key = tmp_path / "sombra.pem"
    key.write_bytes(SOMBRA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = services.settings
    settings.transcend_public_key, settings.transcend_organization = key, "acme"
    settings.transcend_api_key, settings.transcend_url = SecretStr("transcend-key"), "https://sombra.example"
    settings.datagrail_secrets = {"tiny": SecretStr("one"), "other": SecretStr("two")}
    settings.fides_url = "https://fides.example/fides/"
    assert api.post("/v1/models", json=registration(base, name="other")).status_code == 201
    for name in (model, "other"):
        fill(services, api, name, corpus_body(tmp_path, ["A text of nobody."], name))
    return services


def request_count(api) -> int:
    """How many requests there are."""
    return len(api.get(REQUESTS).json()["items"])


def sombra_token(**changes) -> str:
    """A token as Sombra signs it."""
    claims = {"scope": "coreIdentifier", "value": CORE, "aud": "acme", "iat": int(time.time()), **changes}
    return jwt.encode(claims, SOMBRA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "ES384")


def transcend(api, token: str, nonce: str = "nonce-1", model: str = "tiny", profile: str = CORE):
    """Transcend's webhook."""
    extras = {"profile": {"identifier": profile, "type": "email"}}
    body = {"type": "ERASURE", "coreIdentifier": {"value": CORE}, "extras": extras}
    headers = {"x-sombra-token": token, "x-transcend-nonce": nonce}
    return api.post(f"/connect/transcend/{model}", json=body, headers=headers)


def test_transcends_core_identifier_alone_counts(platforms, api):
    """Another identifier is not signed: it is neither looked up nor reported as erased."""
    refused = transcend(api, sombra_token(), profile="victim@example.org")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "extras.profile.identifier")
    assert request_count(api) == 0
    assert transcend(api, sombra_token(), profile=f" {CORE.upper()}").status_code == 200
    with platforms.db.reading() as session:
        request = requests.by_id(session, uuid.UUID(api.get(REQUESTS).json()["items"][0]["id"]))
    identities = request_subject(platforms.wrapper, request)["identities"]
    assert [identity["value"] for identity in identities] == [CORE]


def test_transcends_token_counts_once(platforms, api):
    """For its first nonce and model, which it does not sign; Transcend may repeat that very webhook."""
    token = sombra_token()
    assert transcend(api, token).status_code == 200
    assert transcend(api, token).status_code == 200
    assert transcend(api, token, nonce="nonce-2").status_code == 401
    assert transcend(api, token, model="other").status_code == 401
    assert request_count(api) == 1
    assert transcend(api, sombra_token(jti="2"), nonce="nonce-2").status_code == 200
    assert request_count(api) == 2


def test_the_second_signature_of_the_same_token_is_the_same_token(platforms, api):
    """Of an ECDSA signature (r, s), anybody can make the valid (r, n - s)."""
    token = sombra_token()
    assert transcend(api, token).status_code == 200
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature)
    r, s = int.from_bytes(raw[:48], "big"), ORDER - int.from_bytes(raw[48:], "big")
    SOMBRA.public_key().verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(SHA384()))
    twin = base64.urlsafe_b64encode(r.to_bytes(48, "big") + s.to_bytes(48, "big")).rstrip(b"=").decode()
    assert transcend(api, f"{signed}.{twin}", nonce="nonce-2").status_code == 401


def datagrail(api, model: str, secret: str, request_id: str = "1", timestamp: str | None = None):
    """DataGrail's webhook."""
    body = {"request_type": "deletion", "webhook_request_id": request_id, "identifiers": {"email": [CORE]}}
    raw, timestamp = json.dumps(body).encode(), timestamp or str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{timestamp}:".encode() + raw, hashlib.sha256).digest()
    headers = {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": base64.b64encode(digest).decode()}
    return api.post(f"/connect/datagrail/{model}", content=raw, headers=headers)


def test_datagrails_webhook_is_for_the_model_of_its_secret(platforms, api):
    """The path is not signed; so what was signed for one model is not valid for another."""
    assert datagrail(api, "other", "one").status_code == 401
    assert datagrail(api, "unknown", "one").status_code == 401
    assert request_count(api) == 0
    assert datagrail(api, "tiny", "one").status_code == 202
    assert datagrail(api, "tiny", "one").status_code == 202  # theirs once more
    assert datagrail(api, "other", "two").status_code == 202  # the same id at another model is another request
    assert request_count(api) == 2


def test_two_models_never_share_a_secret():
    """Or a webhook for one would be valid for the other."""
    with pytest.raises(ValidationError, match="secret of its own") as raised:
        Settings(datagrail_secrets={"a": "s3cr3t", "b": "s3cr3t"})
    assert "s3cr3t" not in str(raised.value)
    with pytest.raises(ValidationError):
        Settings(datagrail_secrets={"a": ""})


@pytest.mark.parametrize("timestamp", ["999999999999", "99999999999999999", "-1", "1e9", "0", "", "\u0664\u0662"])
def test_a_time_that_is_none_is_refused(platforms, api, timestamp):
    """Whoever sends it, and however large it is."""
    body = b"{}"
    headers = {"X-Webhook-Timestamp": timestamp.encode(), "X-Webhook-Signature": b"x"}
    assert api.post("/connect/datagrail/tiny", content=body, headers=headers).status_code in (401, 422)
    if timestamp.isascii():
        assert datagrail(api, "tiny", "one", timestamp=timestamp or "0").status_code in (401, 422)


@pytest.mark.parametrize(
    "identifiers", [{"email": "a" * 501}, {"email": [CORE] * 51}, {f"name{n}": "x" for n in range(51)}]
)
def test_a_webhook_is_bounded(platforms, api, identifiers):
    """Its values, their number, and the number of names."""
    body = {"request_type": "deletion", "webhook_request_id": "1", "identifiers": identifiers}
    raw, timestamp = json.dumps(body).encode(), str(int(time.time()))
    digest = hmac.new(b"one", f"{timestamp}:".encode() + raw, hashlib.sha256).digest()
    headers = {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": base64.b64encode(digest).decode()}
    assert api.post("/connect/datagrail/tiny", content=raw, headers=headers).status_code == 422


@pytest.mark.parametrize("path", ["/", "/api/v1/user", "//elsewhere.example/", "/@elsewhere.example", f"{REPLY}?x=1"])
def test_fides_is_called_back_on_one_path(platforms, api, path):
    """A caller cannot choose what is called with its token, neither the host nor the path."""
    body = {"privacy_request_id": "p", "email": CORE}
    headers = {"reply-to": path, "reply-to-token": "token"}
    refused = api.post("/connect/fides/tiny", json=body, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "reply-to")
    assert api.post("/connect/fides/tiny", json=body, headers={**headers, "reply-to": REPLY}).status_code == 202


@pytest.mark.parametrize("dialect", ["fides", "transcend"])
def test_a_platforms_credentials_go_to_the_operators_url_alone(platforms, api, dialect):
    """Whatever URL is stored: the setting of now counts."""
    request_id = api.post(REQUESTS, json={"model": "tiny", "records": [{"text": "a"}]}).json()["id"]
    with platforms.db.reading() as session:
        request = requests.by_id(session, uuid.UUID(request_id))
    target = CallbackTarget("https://elsewhere.example/", "token")
    call = CALLBACK_BUILDERS[dialect](Notification(platforms, request, uuid.uuid4(), "completed", target))
    urls = {"fides": f"https://fides.example/fides{REPLY}", "transcend": "https://sombra.example/v1/data-silo"}
    assert call.url == urls[dialect]


def test_the_same_privacy_request_may_be_about_two_models(platforms, api):
    """Fides has a connector for each; its id names a request of each."""
    for model in ("tiny", "other", "tiny"):
        answer = api.post(f"/connect/fides/{model}", json={"privacy_request_id": "p", "email": CORE})
        assert answer.status_code == 202
    assert request_count(api) == 2


def test_an_opendsr_controller_sees_its_own_requests_alone(platforms, api, new_key):
    """Also with the scope `read`; the operator sees all."""
    body = {
        "regulation": "gdpr",
        "subject_request_id": str(uuid.uuid4()),
        "subject_request_type": "erasure",
        "submitted_time": "2026-11-20T10:00:00Z",
        "extensions": {"localhost": {"model": "tiny", "records": [{"text": "A text."}]}},
        "status_callback_urls": ["https://controller.example/"] * 3,
    }
    mine, theirs = ({"Authorization": f"Bearer {new_key('submit', 'read')}"} for _ in range(2))
    assert api.post("/v2/requests", json=body, headers=mine).status_code == 201
    for path in ("/v2/requests", "/v2/status", "/v1/opengdpr_requests"):
        url = f"{path}/{body['subject_request_id']}"
        assert api.get(url, headers=mine).status_code == 200
        assert api.get(url, headers=theirs).status_code == 404
        assert api.get(url).status_code == 200
    with platforms.db.reading() as session:
        assert requests.by_subject_request(session, uuid.UUID(body["subject_request_id"])).callbacks == 1
