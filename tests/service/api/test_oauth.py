"""Access tokens of an issuer beside API keys."""

import base64
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient

from service.local.process import wait_until
from service.main import create_app

ISSUER = "https://login.example.org"
KEYS = {name: rsa.generate_private_key(65537, 2048) for name in ("ours", "another's")}


def jwk(name: str) -> dict:
    """The public half, as an issuer shows it."""
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name, "use": "sig"}


@pytest.fixture
def issuer():
    """A server of the issuer's keys; the list may be changed."""
    shown = [jwk("ours")]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": shown}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield shown, f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


def b64(data: bytes) -> bytes:
    """As JWTs have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(key: str = "ours", kid: str | None = None, algorithm: str = "RS256", typ: str = "at+jwt", **changes) -> str:
    """An access token of a client that may submit."""
    claims = {
        "iss": ISSUER,
        "aud": "unlearnd",
        "sub": "compliance-tool",
        "exp": int(time.time()) + 60,
        "scope": "submit openid",
        **changes,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, KEYS[key], algorithm, headers={"kid": kid or key, "typ": typ})


@pytest.fixture
def ask(services, issuer):
    """Ask with a token."""
    changes = {"oauth_jwks_url": issuer[1], "oauth_issuer": ISSUER}
    services.settings = services.settings.model_copy(update=changes)
    with TestClient(create_app(services)) as client:

        def call(bearer: str, method: str = "GET", path: str = "/v1/deletion-requests", **arguments):
            return client.request(method, path, headers={"Authorization": f"Bearer {bearer}"}, **arguments)

        yield call


def test_a_token_counts_as_a_key_with_its_scopes(ask, api, model):
    """What it submits is its own; what it was not given, it may not do."""
    assert ask(token()).status_code == 200
    taken = ask(token(), "POST", json={"model": model, "records": [{"text": "Maria lives here."}]})
    assert taken.status_code == 202
    assert ask(token(), "POST", "/v1/api-keys", json={"name": "x", "scopes": ["admin"]}).status_code == 403
    assert ask(token(scope="openid")).status_code == 403
    url = f"/v1/deletion-requests/{taken.json()['id']}"
    assert ask(token(), path=url).status_code == 200
    assert ask(token(sub="another"), path=url).status_code == 404
    assert ask(token(sub="another")).json()["items"] == []
    assert ask(token(sub="another"), "DELETE", url).status_code == 404
    assert ask(token(sub="another"), "POST", f"{url}/extend", json={"reason": "complexity"}).status_code == 404
    assert ask(token(sub="a reader", scope="read"), path=url).status_code == 200
    assert ask(token(scope="admin"), path="/v1/api-keys").status_code == 403  # what a token may give is a setting


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"iss": "https://else.example.org"},
        {"aud": "another service"},
        {"sub": None},
        {"exp": None},
        {"key": "another's"},
        {"key": "another's", "kid": "ours"},
        {"typ": "JWT"},
        {"typ": "dpop+jwt"},
    ],
    ids=str,
)
def test_a_token_that_is_not_the_issuers_for_us_is_refused(ask, changes):
    """Its age, its names, and its signature."""
    answer = ask(token(**changes))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_token_signed_with_nothing_is_refused(ask):
    """Neither `none`, nor the public key taken for a secret."""
    claims = {"iss": ISSUER, "aud": "unlearnd", "sub": "x", "exp": int(time.time()) + 60, "scope": "admin"}
    public = KEYS["ours"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [json.dumps({"alg": "HS256", "kid": "ours", "typ": "at+jwt"}).encode(), json.dumps(claims).encode()]
    parts.append(hmac.digest(public, b".".join(map(b64, parts)), "sha256"))
    curve = ec.generate_private_key(ec.SECP256R1())
    for forged in (
        jwt.encode(claims, curve, "ES256", headers={"kid": "ours", "typ": "at+jwt"}),
        jwt.encode(claims, None, "none", headers={"kid": "ours", "typ": "at+jwt"}),
        b".".join(map(b64, parts)).decode(),
    ):
        assert ask(forged).status_code == 401


def test_the_issuer_may_change_its_key_and_a_client_may_be_shut_out(ask, api, issuer):
    """A key that is new is fetched; a client whose entry was revoked stays out with whatever token."""
    assert ask(token()).status_code == 200
    issuer[0][:] = [jwk("another's")]
    assert wait_until(lambda: ask(token("another's")).status_code == 200, 10)  # it is not asked for keys all the time
    (entry,) = [key for key in api.get("/v1/api-keys").json()["items"] if key["name"].startswith("oauth ")]
    assert api.delete(f"/v1/api-keys/{entry['id']}").status_code == 204
    assert ask(token(jti="a new one")).status_code == 401


@pytest.mark.parametrize("away", ["refuses", "says nothing of use"])
def test_tokens_cannot_be_judged_while_the_issuer_is_away(ask, services, new_key, issuer, away):
    """That is said to be for now, not for ever; API keys go on."""
    if away == "refuses":
        services.settings.oauth_jwks_url = "http://127.0.0.1:9/keys"
    else:
        issuer[0].clear()
    answer = ask(token())
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert ask(new_key("read")).status_code == 200


def test_a_stream_ends_with_its_token(ask, api, job):
    """The answer is complete once the token has expired, though the job goes on."""
    answers = []

    def is_streamed() -> bool:
        seconds = 3 + len(answers)  # on a busy machine a token may expire before the first event is read
        answers.append(ask(token(exp=int(time.time()) + seconds, scope="read"), path=f"/v1/jobs/{job[1]}/events"))
        return answers[-1].status_code == 200 and "event: stage" in answers[-1].text

    assert wait_until(is_streamed, 60), [answer.text for answer in answers]
    assert "event: done" not in answers[-1].text
