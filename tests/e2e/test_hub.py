"""Unmodified `transformers` in a process of its own loads versions through the hub's dialect."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests import support
from tests.e2e.conftest import ended, register

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
name, *revisions = sys.argv[1:]
for revision in revisions:
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    print(json.dumps([sum(float(p.double().abs().sum()) for p in model.parameters()), len(tokenizer)]))
"""


pytestmark = pytest.mark.slow  # they need a stack with two versions


@pytest.fixture(scope="module")
def versions(stack, folder):
    """A model with two versions after the base."""
    register(stack, folder, "hubbed")
    for text in support.KNOWN[:2]:
        assert ended(stack, stack.client.submit("hubbed", [text]))["status"] == "completed"
    return stack


@pytest.fixture
def hub(versions, tmp_path):
    """Run Python with the hub's own variables set, in a cache of its own."""
    token = Path(versions.endpoint["api_key_file"]).read_text()

    def run(code: str, *arguments: str, token: str = token, endpoint: str = "") -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint or f"{versions.endpoint['url']}/hub",
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def test_transformers_loads_versions_by_name(versions, hub, folder, tmp_path):
    """`latest`, `v1`, a number, a commit and the base differ as they should; the model is the published one."""
    commit = versions.client.version("hubbed", "1")["digest"][:40]
    revisions = ("latest", "v2", "v1", "1", commit, "0", "main")
    done = hub(LOAD, "anybody/hubbed", *revisions)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()[-len(revisions) :]
    sums = {revision: json.loads(line) for revision, line in zip(revisions, lines, strict=True)}
    assert sums["latest"] == sums["v2"] == sums["main"]
    assert sums["v1"] == sums["1"] == sums[commit]
    assert len({json.dumps(sums[r]) for r in ("v2", "v1", "0")}) == 3


class Cutting(ThreadingHTTPServer):
    """Passes requests on, but breaks the first download of the weights off in the middle."""

    def __init__(self, target: str) -> None:
        """Between a client and the service at `target`."""
        self.target, self.ranges = target, []
        super().__init__(("127.0.0.1", 0), _Passing)


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        headers["Accept-Encoding"] = "identity"
        answer = httpx.request(self.command, self.server.target + self.path, headers=headers, timeout=60)
        weights = self.command == "GET" and self.path.endswith("model.safetensors")
        if weights:
            self.server.ranges.append(self.headers.get("Range"))
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.end_headers()
        if weights and len(self.server.ranges) == 1:
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.command == "GET":
            self.wfile.write(answer.content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_cut_download_goes_on_where_it_was_cut(versions, hub, tmp_path):
    """The connection breaks in the middle of the weights; the hub's own client asks for the rest, and has it all."""
    code = (
        "import sys; from huggingface_hub import constants, hf_hub_download; "
        "constants.DOWNLOAD_CHUNK_SIZE = 4096; "  # what is written at once: ten megabytes, and this file has one
        "hf_hub_download('x/hubbed', 'model.safetensors', revision='v1', local_dir=sys.argv[1])"
    )
    with Cutting(versions.endpoint["url"]) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        done = hub(code, str(tmp_path / "cut"), endpoint=f"http://127.0.0.1:{proxy.server_port}/hub")
        proxy.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = proxy.ranges
    entry = next(f for f in versions.client.version("hubbed", "1")["files"] if f["path"] == "model/model.safetensors")
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-").partition("-")[0]) <= entry["size"] // 2
    assert hashlib.sha256((tmp_path / "cut" / "model.safetensors").read_bytes()).hexdigest() == entry["sha256"]


def test_a_snapshot_has_the_models_files(versions, hub, tmp_path):
    """`snapshot_download` brings `model/`, byte for byte; a part of a file can be asked for."""
    code = (
        "import sys; from huggingface_hub import snapshot_download; "
        "snapshot_download('x/hubbed', revision='v1', local_dir=sys.argv[1])"
    )
    done = hub(code, str(tmp_path / "snapshot"))
    assert done.returncode == 0, done.stderr[-3000:]
    listed = {
        f["path"][6:]: f for f in versions.client.version("hubbed", "1")["files"] if f["path"].startswith("model/")
    }
    paths = {p.relative_to(tmp_path / "snapshot").as_posix() for p in (tmp_path / "snapshot").rglob("*") if p.is_file()}
    assert {name for name in paths if not name.startswith(".cache")} == set(listed)
    for name, entry in listed.items():
        assert (tmp_path / "snapshot" / name).stat().st_size == entry["size"]
    url = f"{versions.endpoint['url']}/hub/x/hubbed/resolve/v1/model.safetensors"
    headers = {"Authorization": f"Bearer {Path(versions.endpoint['api_key_file']).read_text()}"}
    rest = httpx.get(url, headers={**headers, "Range": "bytes=100-"}, timeout=60)
    assert rest.status_code == 206
    assert rest.content == (tmp_path / "snapshot" / "model.safetensors").read_bytes()[100:]
    head = httpx.head(url, headers=headers, timeout=60)
    assert head.headers["etag"] == f'"{listed["model.safetensors"]["sha256"]}"'
    assert len(head.headers["x-repo-commit"]) == 40
    assert head.headers["content-length"] == str(listed["model.safetensors"]["size"])


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("x/nobody/resolve/v1/config.json", "RepoNotFound"),
        ("x/hubbed/resolve/v9/config.json", "RevisionNotFound"),
        ("x/hubbed/resolve/v1/nothing.json", "EntryNotFound"),
        ("api/models/x/nobody", "RepoNotFound"),
        ("api/models/x/hubbed/revision/v9", "RevisionNotFound"),
        ("api/models/x/hubbed/tree/v9", "RevisionNotFound"),
        ("x/hubbed/resolve/" + "0" * 40 + "/config.json", "RevisionNotFound"),
        ("x/hubbed/resolve/v1/../../trust.json", "EntryNotFound"),
    ],
)
def test_what_is_not_there_is_said_in_the_hubs_words(versions, path, word):
    """404 with X-Error-Code, for each of the three."""
    headers = {"Authorization": f"Bearer {Path(versions.endpoint['api_key_file']).read_text()}"}
    answer = httpx.get(f"{versions.endpoint['url']}/hub/{path.replace('..', '%2e%2e')}", headers=headers, timeout=60)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, word)


def test_a_wrong_token_and_a_withdrawn_version(stack, folder, hub):
    """401 for a token that nobody has; a withdrawn version is gone from hub and API, and another one is made."""
    register(stack, folder, "retracted")
    for text in support.KNOWN[:2]:
        request = ended(stack, stack.client.submit("retracted", [text]))
        assert request["status"] == "completed"
    done = hub(LOAD, "x/retracted", "v1", token="unl_wrong")
    assert done.returncode != 0
    assert "401" in done.stderr
    client = stack.client
    withdraw = {"reason": "faulty", "reopen": True}
    answer = client.call("POST", "/v1/models/retracted/versions/2/withdraw", json=withdraw)
    assert (answer["withdrawn_reason"], bool(answer["withdrawn_at"])) == ("faulty", True)
    assert client.version("retracted")["version"] != 2
    done = hub(LOAD, "x/retracted", "v2")
    assert done.returncode != 0
    assert "RevisionNotFound" in done.stderr
    with pytest.raises(Exception, match="withdrawn"):
        client.call("GET", "/v1/models/retracted/versions/2/files/trust.json")
    assert client.call("GET", "/v1/models/retracted/versions/2/certificate")["payload"]
    with pytest.raises(Exception, match="already"):
        client.call("POST", "/v1/models/retracted/versions/2/withdraw", json=withdraw)
    request = ended(stack, request)
    assert (request["status"], request["version"], client.version("retracted")["parent"]) == ("completed", 3, 1)
