"""What the command line lists, and the changes that an operator makes with it."""

import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select

from service.db.tables import DeletionRequest
from service.privacy.records import open_probes
from tests.service.conftest import REQUESTS, registration, submit
from tests.service.jobs import published


def ids(rows: list[dict]) -> list[str]:
    """The ids of a list."""
    return [row["id"] for row in rows]


def test_lists_end_at_their_limit(cli, api, model):
    """All of them without a limit, over several pages; the newest ones with one."""
    sent = [submit(api, reference=f"case {number}")["id"] for number in range(205)][::-1]
    assert ids(cli("requests", "list", "--json")) == sent
    assert ids(cli("requests", "list", "--limit", "203", "--json")) == sent[:203]
    assert ids(cli("requests", "list", "--limit", "2", "--json")) == sent[:2]
    assert ids(cli("requests", "list", "--reference", "case 7", "--json")) == [sent[-8]]
    assert "case 204" in cli("requests", "list", "--limit", "1")
    assert cli("requests", "list", "--limit", "0", code=2)


def test_probes_are_submitted_from_a_file(cli, services, api, model):
    """They reach the request; a file that is no JSON, or whose probes are not valid, is named and nothing is sent."""
    probes = [{"prompt": "Where does Zoraida Quill work?", "secret": "Sample & Sons"}]
    for content, code, said in (
        (json.dumps(probes), 0, "pending"),
        ("{", 1, "--probes"),
        ('[{"prompt": 1}]', 1, "probes"),
    ):
        Path("probes.json").write_text(content)
        command = ("requests", "submit", "--model", "tiny", "--text", "Zoraida Quill", "--probes", "probes.json")
        assert said in cli(*command, code=code)
    with services.db.reading() as session:
        (request,) = session.scalars(select(DeletionRequest))
        assert [asdict(probe) for probe in open_probes(services.wrapper, request)] == probes


def test_the_earliest_deadlines_are_shown_first_up_to_the_limit(cli, api, model):
    """The limit is for what is due first, not for what came last."""
    early = submit(api, received_at="2026-10-20T00:00:00Z")
    for _ in range(3):
        submit(api)
    assert ids(cli("requests", "list", "--due-days", "100", "--limit", "1", "--json")) == [early["id"]]


def test_jobs_are_listed_shown_and_cancelled(cli, api, job):
    """By model and stage; a misspelled model is an error."""
    request, job_id = job
    (row,) = cli("jobs", "list", "--model", "tiny", "--stage", "queued", "--json")
    assert row["id"] == str(job_id)
    assert cli("jobs", "list", "--stage", "done", "--json") == []
    assert cli("jobs", "show", str(job_id), "--json")["stage"] == "queued"
    assert "no model" in cli("jobs", "list", "--model", "tinny", code=1)
    assert cli("jobs", "cancel", str(job_id), "--json")["reason"] == "cancelled"
    assert "quarantined" in cli("jobs", "list")
    assert "quarantined" in cli("jobs", "cancel", str(job_id), code=1)
    assert cli("jobs", "retry", str(job_id), "--json")[0]["id"] == request["id"]
    assert "no such job" in cli("jobs", "show", str(uuid4()), code=1)


@pytest.mark.parametrize("number", ["1", "v1"])
def test_a_version_is_listed_and_withdrawn(cli, api, services, model, number):
    """By its number, with or without the letter; afterwards the list says so."""
    published(api, services, "a record")
    published(api, services, "another record")
    assert [row["version"] for row in cli("versions", "list", "tiny", "--json")] == [2, 1, 0]
    assert [row["version"] for row in cli("versions", "list", "tiny", "--limit", "1", "--json")] == [2]
    shown = cli("versions", "withdraw", "tiny", number, "--reason", "faulty", "--json")
    assert (shown["version"], shown["withdrawn_reason"]) == (1, "faulty")
    assert "faulty" in cli("versions", "list", "tiny")
    assert "number" in cli("versions", "withdraw", "tiny", "latest", "--reason", "faulty", code=1)
    assert "no model" in cli("versions", "list", "none", code=1)


@pytest.mark.parametrize("number", ["v1", "1", "latest"])
def test_a_version_is_named_in_three_ways(cli, api, services, model, number, tmp_path):
    """In the API's paths and in the option of the download."""
    published(api, services, "a record")
    path = f"/v1/models/tiny/versions/{number}"
    assert api.get(path).json()["version"] == 1
    assert api.get(f"{path}/certificate").status_code == 200
    assert cli("models", "download", "tiny", "release", "--version", number, "--json")["version"] == 1
    assert (tmp_path / "release" / "model" / "model.safetensors").is_file()
    assert api.get(f"{path}x").status_code == 422


def test_api_keys_are_listed_without_secrets(cli, api, new_key):
    """Their names, scopes and ids, as many as one asks for."""
    key = new_key("read", "audit")
    shown = cli("keys", "list", "--json")
    assert shown[-1]["scopes"] == ["read", "audit"]
    assert key not in json.dumps(shown)
    assert "read audit" in cli("keys", "list")
    assert len(cli("keys", "list", "--limit", "1", "--json")) == 1


def test_a_policy_is_changed_from_the_command_line(cli, model):
    """Field by field, or as a whole from a file; all that there was is shown; what is wrong is named."""
    assert cli("models", "policy", "tiny", "--json")["rank"] == 16
    changed = cli("models", "policy", "tiny", "--set", "rank=4", "--set", "loss=gd", "--json")
    assert (changed["rank"], changed["loss"], changed["policy_version"]) == (4, "gd", 2)
    Path("policy.json").write_text(json.dumps({"max_epochs": 3}))
    assert cli("models", "policy", "tiny", "--file", "policy.json", "--json")["rank"] == 16
    assert [row["policy_version"] for row in cli("models", "policy", "tiny", "--history", "--json")] == [3, 2, 1]
    assert "policy.rank" in cli("models", "policy", "tiny", "--set", "rank=many", code=1)
    assert "FIELD=VALUE" in cli("models", "policy", "tiny", "--set", "rank", code=1)
    assert "preset" in cli("models", "policy", "tiny", "--set", "preset=paper", code=1)
    assert "policy_version" in cli("models", "list")


def test_show_names_who_decided(cli, api, services, base, new_key):
    """A line for each decision, behind the request."""
    api.post("/v1/models", json=registration(base, policy={"approvals": 2}))
    submitter = {"Authorization": f"Bearer {new_key('submit')}"}
    body = {"model": "tiny", "records": [{"text": "a record"}]}
    request = api.post(REQUESTS, json=body, headers=submitter).json()
    cli("requests", "approve", request["id"])
    shown = cli("requests", "show", request["id"])
    assert "approved" in shown
    assert "decisions" not in shown


def test_the_version_of_the_program(cli):
    """`--version` says which release this is."""
    assert cli("--version").strip() == importlib.metadata.version("unlearnd")
