"""The OpenAPI document says what is so: Schemathesis over the whole API, and no change of it goes unseen."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import uvicorn

from service.db import corpora
from service.local.process import wait_until
from service.main import create_app
from service.steps.subjects.index import index_corpus
from service.steps.subjects.resolve import resolve_request
from tests import support
from tests.service.conftest import registration

SNAPSHOT = Path(__file__).with_name("openapi.json")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
OPTIONS = "--wait-for-schema 10 --seed 1 --no-color --continue-on-failure --suppress-health-check all --warnings off"
HOOKS = """
import json, schemathesis

@schemathesis.serializer("application/x-ndjson")
def one_line(_, value):
    return {"data": value if isinstance(value, bytes) else json.dumps(value).encode()}
"""
NAMES = (
    'name = "assistant"',
    'model = "assistant"',
    "number = 0",
    'revision = "v0"',
    'corpus = "crm"',
    'repo = "assistant"',
)


@pytest.fixture
def url(services):
    """The application behind a real socket."""
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 60)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("known", "examples"),
    [
        pytest.param(True, 1, id="names that are there"),
        pytest.param(True, 10, marks=pytest.mark.slow, id="names that are there, more examples"),
        pytest.param(False, 10, marks=pytest.mark.slow, id="any names"),
    ],
)
def test_no_answer_is_outside_the_document(url, services, new_key, base, tmp_path, known, examples):
    """Each operation with values that fit and that do not, then sequences of them: no 5xx, nothing undocumented."""
    key = {"Authorization": f"Bearer {new_key('admin')}"}
    httpx.post(
        f"{url}/v1/models", json=registration(base, name="assistant"), headers=key, timeout=60
    ).raise_for_status()
    corpus = {"name": "crm", "path": str(base / "retain.jsonl")}
    httpx.post(f"{url}/v1/models/assistant/corpora", json=corpus, headers=key, timeout=60).raise_for_status()
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    name = " ".join(support.RETAIN[0].split()[:2])
    body = {"model": "assistant", "subject": {"names": [name]}}
    submitted = {"Authorization": f"Bearer {new_key('submit')}"}  # so that the other key may approve it
    request = httpx.post(f"{url}/v1/deletion-requests", json=body, headers=submitted, timeout=60).json()
    resolve_request(services, UUID(request["id"]))
    settings = tmp_path / "schemathesis.toml"
    (tmp_path / "hooks.py").write_text(HOOKS)
    names = "[parameters]\n" + "".join(f"path.{name}\n" for name in NAMES) if known else ""
    settings.write_text(f'hooks = "{tmp_path}/hooks.py"\n{names}')
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("--config-file", str(settings), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: {key['Authorization']}", "--checks", CHECKS, "--max-examples", str(examples)),
        *OPTIONS.split(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    listed = httpx.get(f"{url}/v1/deletion-requests", headers=key, timeout=60)
    assert listed.json()["items"]  # it has the key still, and some of what it submitted was taken


def test_the_document_is_the_one_that_was_looked_at(services):
    """Whoever changes the API sees in the diff what tools will see; without the file it is written anew."""
    described = create_app(services).openapi()
    described["info"]["version"] = "the tag's"
    document = json.dumps(described, indent=1, sort_keys=True) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(document)
    assert document == SNAPSHOT.read_text()
