"""What depends on who can reach the service: its URL in answers, `/metrics`, `/docs`."""

import subprocess
import sys

import httpx
import pytest
from fastapi.testclient import TestClient

from service.main import create_app
from tests.service.api.submissions import assert_problem
from tests.service.api.test_guard import OPERATIONS, fill_in
from tests.service.served import environment, free_port, server_process

HERE, ELSEWHERE = ("127.0.0.1", 50_000), ("192.0.2.7", 50_000)
EVIL = {"Host": "evil.example"}


def test_answers_name_the_public_url_and_never_the_host_header(services):
    """OpenDSR signs what it names. Without a public URL it is the address of the socket."""
    with TestClient(create_app(services), "http://127.0.0.1:8123") as client:
        signed = client.get("/v2/discovery", headers=EVIL).json()
        assert signed["processor_certificate"] == "http://127.0.0.1:8123/v2/certificate.pem"
        services.settings.public_url = "https://unlearn.example.org"
        signed = client.get("/v2/discovery", headers=EVIL).json()
        assert signed["processor_certificate"] == "https://unlearn.example.org/v2/certificate.pem"


def test_no_answer_names_the_host_header(api, services, model):
    """Neither in its body nor in its headers, with a slash at the end of the path or without."""
    for method, path in OPERATIONS:
        for target in (fill_in(path), f"{fill_in(path)}/"):
            answer = api.request(method, target, headers=EVIL, follow_redirects=False)
            assert "evil.example" not in answer.text + str(answer.headers), target


def ask(services, client, headers=None, **settings) -> httpx.Response:
    """GET /metrics of an application with these settings, as this client."""
    services.settings = services.settings.model_copy(update=settings)
    with TestClient(create_app(services), client=client) as test_client:
        return test_client.get("/metrics", headers=headers)


def test_metrics_are_open_to_this_machine_alone(services, new_key):
    """Everybody else needs a key that may read."""
    assert ask(services, HERE).status_code == 200
    assert_problem(ask(services, ELSEWHERE), 401)
    assert ask(services, ELSEWHERE, {"Authorization": f"Bearer {new_key('read')}"}).status_code == 200
    assert ask(services, ELSEWHERE, {"Authorization": f"Bearer {new_key('admin')}"}).status_code == 200
    assert_problem(ask(services, ELSEWHERE, {"Authorization": f"Bearer {new_key('submit')}"}), 403)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Via"])
def test_a_forwarded_request_does_not_come_from_this_machine(services, header):
    """A reverse proxy on the same machine forwards the whole world."""
    assert_problem(ask(services, HERE, {header: "127.0.0.1"}), 401)


def test_a_service_for_others_asks_everybody_for_a_key(services):
    """A proxy may add no header at all, so the settings count: a public URL, or proxies."""
    assert ask(services, HERE, public_url="http://localhost:8000").status_code == 200
    assert_problem(ask(services, HERE, public_url="https://unlearn.example.org"), 401)
    assert_problem(ask(services, HERE, public_url="", trusted_proxies=["127.0.0.1"]), 401)


def test_a_server_for_others(services):
    """No `/docs`, metrics on a port of their own, and its public URL in answers."""
    metrics_port = free_port()
    settings = {"public_url": "https://unlearn.example.org/", "metrics_port": metrics_port}
    with server_process(services, host="0.0.0.0", **settings) as server:
        assert server.get("/docs").status_code == 404
        assert server.get("/metrics").status_code == 401
        assert server.get("/openapi.json").status_code == 200
        metrics = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False, timeout=60)
        assert "unlearnd_requests_overdue" in metrics.text
        named = server.get("/v2/discovery", Host="evil.example").json()["processor_certificate"]
        assert named == "https://unlearn.example.org/v2/certificate.pem"


def test_a_server_for_this_machine(services):
    """It has `/docs` and names the address of its socket."""
    with server_process(services) as server:
        assert server.get("/docs").status_code == 200
        assert server.get("/metrics").status_code == 200
        assert server.get("/v2/discovery", Host="evil.example").json()["processor_certificate"].startswith(server.url)


@pytest.mark.parametrize("command", ["api", "up"])
def test_nobody_serves_others_without_a_public_url(services, tmp_path, command):
    """One line names the setting, and nothing is started."""
    up = ["service.cli", "up", "--data-dir", str(tmp_path / "data")]
    module = up if command == "up" else ["service.main"]
    done = subprocess.run(
        [sys.executable, "-m", *module, "--host", "0.0.0.0", "--port", "0"],
        env=environment(services),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "unlearnd: UNLEARND_PUBLIC_URL is not set: others can reach 0.0.0.0, so set the URL that they use\n"
    )
    assert not (tmp_path / "data").exists()
