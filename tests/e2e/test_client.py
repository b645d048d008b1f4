"""The two clients and the command line, on one running stack."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.audit.verify import verify
from service.client.http import AsyncClient, Client
from service.domain.errors import ClientError
from tests import support
from tests.e2e.conftest import register

UNLEARND = str(Path(sys.executable).parent / "unlearnd")


@pytest.fixture(scope="module")
def where(stack) -> tuple[str, str]:
    """URL and key."""
    return stack.endpoint["url"], Path(stack.endpoint["api_key_file"]).read_text()


@pytest.fixture
def run(where, tmp_path):
    """Run a command; its parsed output."""

    def call(*arguments: str, code: int = 0):
        environment = {**os.environ, "UNLEARND_URL": where[0], "UNLEARND_API_KEY": where[1], "COLUMNS": "200"}
        done = subprocess.run([UNLEARND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr

    return call


@pytest.mark.slow
def test_the_asynchronous_client_goes_the_whole_way(stack, folder, where, tmp_path):
    """Submit, events, the end, the download; several at once; an error is one of ours."""
    register(stack, folder, "async")

    async def go():
        async with AsyncClient(*where) as client:
            request = await client.submit("async", [support.KNOWN[0]])
            outcome, listed, models = await asyncio.gather(
                client.wait(request["id"], 120), client.requests(model="async"), client.models()
            )
            kinds = [kind async for kind, _ in client.events(outcome["job_id"])]
            await client.download("async", "latest", tmp_path / "release")
            with pytest.raises(ClientError, match="no such request"):
                await client.request("6f5ca2b0-3d3e-4f5c-9d6e-0b7a3c1d2e3f")
            return request, outcome, listed["items"], kinds, [model["name"] for model in models["items"]]

    request, outcome, listed, kinds, models = asyncio.run(go())
    assert (outcome["status"], outcome["version"]) == ("completed", 1)
    assert [item["id"] for item in listed] == [request["id"]]
    assert (kinds[0], kinds[-1]) == ("stage", "done")
    assert "async" in models
    assert verify(tmp_path / "release").statement["predicate"]["lineage"]["version"] == 1


class Flaky(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers what it is told, one after another; an exception is raised."""

    def __init__(self, *answers) -> None:
        """In this order."""
        self.answers, self.seen = list(answers), []

    def handle_request(self, request):
        """The next one."""
        self.seen.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def handle_async_request(self, request):
        """The same, awaited."""
        return self.handle_request(request)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_lost_answer_is_asked_for_again_under_the_same_idempotency_key(kind):
    """A broken connection, a busy service, too many requests; then what came counts."""
    transport = Flaky(
        httpx.ReadError("lost"),
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429),
        httpx.Response(202, json={"id": "x"}),
    )
    client = behind(kind, transport)
    assert _now(client.submit("m", ["a text"])) == {"id": "x"}
    assert len({request.headers["idempotency-key"] for request in transport.seen}) == 1
    assert len(transport.seen) == 4


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_may_have_been_done_is_not_done_again(kind):
    """A key that was made and lost would be a second one; what never arrived, or was refused for now, is sent again."""
    transport = Flaky(httpx.ConnectError("no"), httpx.Response(503), httpx.ReadError("lost"))
    client = behind(kind, transport)
    with pytest.raises(ClientError, match="cannot be reached, or does not answer"):
        _now(client.call("POST", "/v1/api-keys", json={"name": "x", "scopes": ["read"]}))
    assert len(transport.seen) == 3


@pytest.mark.parametrize("key", ["a key", "schlüssel", "line\nline"])
def test_a_key_that_is_none_is_not_repeated(key):
    """It may be one with something around it."""
    with pytest.raises(ClientError) as refused:
        Client("http://service", key)
    assert key not in str(refused.value)


def behind(kind, transport):
    """A client whose connection is that."""
    client = kind("http://service", "key")
    client._http = (httpx.Client if kind is Client else httpx.AsyncClient)(
        transport=transport, base_url="http://service"
    )
    return client


def _now(answer):
    async def awaited():
        return await answer

    return asyncio.run(awaited()) if hasattr(answer, "__await__") else answer


def test_a_service_that_is_not_there_is_said_in_one_line(tmp_path):
    """And the exit code is 1."""
    environment = {**os.environ, "UNLEARND_URL": "http://127.0.0.1:9", "UNLEARND_API_KEY": "x"}
    done = subprocess.run([UNLEARND, "models", "list"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("unlearnd: the service cannot be reached")


def test_requests_from_the_command_line(stack, folder, run, tmp_path):
    """Submit, show, list, extend, cancel; corpora; each in JSON, too; what is wrong is named."""
    register(stack, folder, "shell", max_wait_seconds=3600)
    made = run("requests", "submit", "--model", "shell", "--text", support.KNOWN[1], "--json")
    receipt = tmp_path / f"receipt-{made['id']}.json"
    assert receipt.stat().st_mode & 0o777 == 0o600
    for target in (receipt, Path("/nowhere/receipt.json")):  # refused before anything is sent
        again = ("requests", "submit", "--model", "shell", "--text", support.KNOWN[1], "--receipt", str(target))
        assert run(*again, code=1).startswith(f"unlearnd: {target}: ")
    assert json.loads(receipt.read_text())["id"] == made["id"]
    named = tmp_path / "named.json"
    printed = run("requests", "submit", "--model", "shell", "--text", support.KNOWN[2], "--receipt", str(named))
    assert f"The receipt is in {named}." in printed
    run("requests", "cancel", json.loads(named.read_text())["id"])
    for wrong in ("--file", "--resubmits"):
        assert f"unlearnd: {wrong}: " in run(*again[:-2], wrong, "/nowhere", code=1)
    assert run("requests", "show", made["id"], "--json")["status"] == "pending"
    assert [r["id"] for r in run("requests", "list", "--model", "shell", "--status", "pending", "--json")] == [
        made["id"]
    ]
    assert made["id"] in run("requests", "list", "--model", "shell", "--due-days", "40")
    assert run("requests", "list", "--model", "shell", "--due-days", "2", "--json") == []
    later = run("requests", "extend", made["id"], "--reason", "complexity", "--json")
    assert later["due_at"] > made["due_at"]
    assert run("requests", "cancel", made["id"], "--json")["status"] == "cancelled"
    assert "only a pending request can be cancelled" in run("requests", "cancel", made["id"], code=1)
    corpus = tmp_path / "crm.csv"
    corpus.write_text("text,customer\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(support.KNOWN)))
    added = run("corpora", "add", "shell", "crm", str(corpus), "--column", "customer=controller_customer_id", "--json")
    assert (added["state"], added["records"]) == ("ready", len(support.KNOWN))
    assert "columns" in run("corpora", "add", "shell", "other", str(corpus), "--column", "customer=nothing", code=1)
    assert "crm" in run("corpora", "list", "shell")
    asked = ("--model", "shell", "--identity", "controller_customer_id:raw:3")
    assert run("requests", "preview", *asked, "--json")["counts"]["identifier"] == 1
    assert support.KNOWN[3][:20] in run("requests", "preview", *asked)
    assert "TYPE:FORMAT:VALUE" in run("requests", "preview", "--model", "shell", "--identity", "nonsense", code=1)
    assert "say who it is" in run("requests", "preview", "--model", "shell", code=1)
    run("corpora", "remove", "shell", "crm")
    assert run("corpora", "list", "shell", "--json") == []
    assert "shell" in {model["name"] for model in run("models", "list", "--json")}


def test_the_shell_completes_commands():
    """As `unlearnd --install-completion` sets it up."""
    environment = {
        **os.environ,
        "_UNLEARND_COMPLETE": "complete_bash",
        "COMP_WORDS": "unlearnd requests app",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([UNLEARND], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["approve"]


def test_every_command_that_answers_answers_in_json():
    """But those that print a file, or whose answer is a file."""
    import typer

    from service.cli import app

    silent = {
        "up",
        "api",
        "worker",
        "control",
        "migrate",
        "demo",
        "sample",
        "render",
        "keys init",
        "keys bootstrap",
        "keys rotate",
        "keys rotate-master",
        "keys distrust",
        "keys trust",
        "keys revoke",
        "log export",
        "storage copy",
        "corpora remove",
    }

    def commands(group, before=""):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, f"{name} ")
            else:
                yield before + name, command

    without = {
        name
        for name, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == silent
