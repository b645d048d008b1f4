"""A version's files, archive, downloads and successors."""

import hashlib
import io
import tarfile
from base64 import b64encode
from uuid import uuid4

from service.audit.verify import verify
from tests.service.api.submissions import assert_problem
from tests.service.jobs import published


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


def test_nginx_is_told_which_file_to_send(api, services, base, model, monkeypatch):
    """By its place under the prefix; what is listed, and who may have it, is decided before."""
    monkeypatch.setattr(services.settings, "accel_prefix", "/released/")
    version = api.get("/v1/models/tiny/versions/0").json()
    url = "/v1/models/tiny/versions/0/files/model/config.json"
    assert "x-accel-redirect" not in api.get(url).headers  # it did not come through nginx
    api.headers["X-Sendfile-Type"] = "X-Accel-Redirect"
    answer = api.get(url, headers={"Range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    place = answer.headers["x-accel-redirect"].removeprefix("/released/")
    assert place == f"{version['digest']}/model/config.json"
    file = services.settings.storage_dir / "versions" / place
    assert file.read_bytes() == (base / "model" / "config.json").read_bytes()
    assert answer.headers["etag"] == f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
    assert "x-accel-redirect" not in api.head(url).headers
    assert api.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    refused = api.get(url, headers={"Authorization": "Bearer wrong"})
    assert "x-accel-redirect" not in refused.headers
    assert_problem(refused, 401)
    weights = api.get("/hub/any/tiny/resolve/v0/model.safetensors")
    assert weights.headers["x-accel-redirect"] == f"/released/{version['digest']}/model/model.safetensors"
    assert "x-accel-redirect" in api.get("/v1/models/tiny/versions/0/files/model/config.json").headers
    assert len(api.get("/v1/models/tiny/versions/0/downloads").json()["items"]) == 1


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


def test_downloads_are_registered_and_superseded_versions_announced(api, services, model, new_key):
    """Once a key and version, by model files alone; the register is for auditors, the feed for whoever reads."""
    published(api, services, "a record")
    secret = new_key("download", "read")
    user = {"Authorization": f"Bearer {secret}"}
    base = "/v1/models/tiny/versions/1"
    for path in ("trust.json", "model.sig"):
        api.get(f"{base}/files/{path}", headers=user)
    assert api.get(f"{base}/downloads").json()["items"] == []
    for _ in range(2):
        api.get(f"{base}/files/model/config.json", headers=user)
    api.head(f"{base}/files/model/config.json")
    (entry,) = api.get(f"{base}/downloads").json()["items"]
    assert entry["name"] == "test"
    published(api, services, "another")
    assert api.get("/v1/models/tiny/versions/2/downloads").json()["items"] == []
    assert api.get(f"{base}/downloads", headers=user).status_code == 403
    assert api.get(f"{base}/downloads", headers={"Authorization": f"Bearer {new_key('audit')}"}).json()["items"] == [
        entry
    ]
    feed = api.get("/v1/models/tiny/supersedes", headers=user).json()
    assert [(i["version"], i["superseded_by"]) for i in feed["items"]] == [(0, 1), (1, 2)]
    certificate = api.get("/v1/models/tiny/versions/2/certificate")
    assert feed["items"][1]["certificate"] == certificate.headers["etag"].strip('"')
    assert [i["version"] for i in api.get("/v1/models/tiny/supersedes?after=1").json()["items"]] == [1]
    assert api.get("/v1/models/tiny/supersedes?limit=1").json()["next_cursor"] == "1"
    assert api.get("/v1/models/nope/supersedes").status_code == 404


def test_a_release_as_one_archive(api, services, model, tmp_path):
    """A tar stream of exactly the folder's files, of the length that was announced; it verifies when unpacked."""
    published(api, services, "a record")
    answer = api.get("/v1/models/tiny/versions/1/archive.tar")
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "release", filter="data")
    verify(tmp_path / "release")
    assert len(api.get("/v1/models/tiny/versions/1/downloads").json()["items"]) == 1
    api.post("/v1/models/tiny/versions/1/withdraw", json={"reason": "faulty", "reopen": True})
    assert api.get("/v1/models/tiny/versions/1/archive.tar").status_code == 404
