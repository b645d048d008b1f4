"""The command line in this process, against the application on a real socket."""

import json

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client.http import Client
from service.client.operations import environment
from service.domain.errors import ClientError
from tests.service.served import served


@pytest.fixture
def cli(services, new_key, tmp_path, monkeypatch):
    """Run a command; its parsed output with --json, else everything that it printed."""
    monkeypatch.chdir(tmp_path)
    with served(services) as address:
        variables = {
            "UNLEARND_URL": f"http://{address[0]}:{address[1]}",
            "UNLEARND_API_KEY": new_key("admin"),
            "NO_PROXY": "127.0.0.1",
        }

        clients = []

        def connect() -> Client:
            clients.append(Client(*environment()))
            return clients[-1]

        monkeypatch.setattr(Client, "from_environment", connect)  # a command leaves its connection to the process's end

        def call(*arguments: str, code: int = 0, **changes: str):
            done = CliRunner().invoke(app, list(arguments), env=variables | changes)
            while clients:
                clients.pop().close()
            if isinstance(done.exception, ClientError):
                assert code == 1, done.exception
                return str(done.exception)
            assert done.exit_code == code, done.output
            return json.loads(done.stdout) if "--json" in arguments else done.output

        call.url = variables["UNLEARND_URL"]
        yield call
