"""API keys: their scopes, and how they are stored."""

import hashlib
import json

from sqlalchemy import select

from service.db import api_keys, log_entries
from tests.service.api.submissions import REQUESTS, assert_problem, body


def test_keys_and_scopes(api, new_key, model):
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
    submitter = {"Authorization": f"Bearer {new_key('submit')}"}
    assert api.post(REQUESTS, json=body(), headers=submitter).status_code == 202
    assert api.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert_problem(api.get(REQUESTS, headers=reader), 401)
    assert "key" not in api.get("/v1/api-keys").json()["items"][0]


def test_keys_are_stored_hashed(api, services, new_key):
    """The secret is nowhere in the table."""
    secret = new_key("read")
    with services.db.transaction() as session:
        from service.db.tables import ApiKey

        hashes = list(session.scalars(select(ApiKey.key_hash)))
    assert hashlib.sha256(secret.encode()).digest() in hashes


def test_making_and_revoking_a_key_is_in_the_log(api, services):
    """By id and scopes, so that nobody gives access unseen; neither the name nor the secret."""
    made = api.post("/v1/api-keys", json={"name": "a robot", "scopes": ["read"]}).json()
    api.delete(f"/v1/api-keys/{made['id']}")
    with services.db.transaction() as session:
        api_keys.external_caller(session, "transcend", ["submit"])
        platform = api_keys.external_caller(session, "transcend", ["submit"])
        *_, created, revoked, external = log_entries.entries(session, 0, 100)
    assert json.loads(created).items() >= {"kind": "api_key.created", "key": made["id"], "scopes": ["read"]}.items()
    assert json.loads(revoked).items() >= {"kind": "api_key.revoked", "key": made["id"]}.items()
    assert json.loads(external).items() >= {"kind": "api_key.created", "key": str(platform.id)}.items()  # once
    assert b"robot" not in created
    assert made["key"].encode() not in created
