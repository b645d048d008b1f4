"""Weights of old versions leave the disk, and come back to the bit; nothing that a version needs ever goes."""

import hashlib
import os
import random
import time
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import update

from service import collected, delta
from service.client import download
from service.client.download import download_file
from service.collected import Rebuilding, collect_weights, rebuild
from service.db import jobs, models
from service.db.tables import Version
from service.doctor import examine
from service.domain.errors import ClientError
from service.files import file_sha256
from service.steps.path.batch import batch_requests
from service.steps.path.compute_input import check_files
from service.steps.upkeep.scrub import scrub_next
from service.storage import local
from tests.service.conftest import only_model, registration, submit
from tests.service.jobs import published
from worker import tasks

WEIGHTS = "model/model.safetensors"


@pytest.fixture
def keeping(api, base):
    """Registers the model with a policy that keeps the weights of so many versions."""

    def register(keep: int) -> None:
        policy = {"max_wait_seconds": 0, "keep": keep}
        assert api.post("/v1/models", json=registration(base, policy=policy)).status_code == 201

    return register


def versions(api, services) -> dict:
    """Number -> (release folder, digest of the weights)."""
    items = api.get("/v1/models/tiny/versions?limit=200").json()["items"]
    return {
        item["version"]: (
            services.storage.release(item["digest"]),
            next(file["sha256"] for file in item["files"] if file["path"] == WEIGHTS),
        )
        for item in items
    }


def grow_old(api, services) -> None:
    """Let every version and its weights file be of the day before yesterday."""
    then = time.time() - 2 * services.settings.orphan_seconds
    with services.db.transaction() as session:
        session.execute(update(Version).values(created_at=datetime.fromtimestamp(then, UTC)))
    for folder, _ in versions(api, services).values():
        if (folder / WEIGHTS).exists():
            os.utime(folder / WEIGHTS, (then, then))


def collect(api, services) -> list[int]:
    """Collect when nothing is young."""
    grow_old(api, services)
    return sorted(collect_weights(services, only_model(services)))


def on_disk(api, services) -> list[int]:
    """The versions that have their weights."""
    return sorted(number for number, (folder, _) in versions(api, services).items() if (folder / WEIGHTS).exists())


def bring_back(services, number: int) -> None:
    """Rebuild a version."""
    with services.db.reading() as session:
        version = models.version(session, models.by_name(session, "tiny"), number)
    rebuild(services, version.id)


def withdraw(api, number: int) -> None:
    """Withdraw a version; its requests are pending again."""
    body = {"reason": "faulty", "reopen": True}
    assert api.post(f"/v1/models/tiny/versions/{number}/withdraw", json=body).status_code == 200


def test_the_newest_and_version_0_keep_their_weights(api, services, keeping):
    """The others come back to the bit, through versions that are collected themselves."""
    keeping(1)
    for text in ("one", "two", "three", "four"):
        published(api, services, text)
    assert collect_weights(services, only_model(services)) == []  # all are young
    assert collect(api, services) == [1, 2, 3]
    assert on_disk(api, services) == [0, 4]
    assert collect(api, services) == []
    bring_back(services, 3)
    folder, sha256 = versions(api, services)[3]
    assert file_sha256(folder / WEIGHTS) == sha256
    assert collect_weights(services, only_model(services)) == []  # it was rebuilt just now
    assert collect(api, services) == [3]


@pytest.mark.parametrize(("count", "most_rank"), [(8, 3), pytest.param(100, 30, marks=pytest.mark.slow)])
def test_many_versions_take_little_more_than_one(api, services, keeping, monkeypatch, count, most_rank):
    """With none kept but version 0: its weights once, and the deltas; a chain of deltas has several bases."""
    monkeypatch.setattr(delta, "MOST_RANK", most_rank)
    keeping(0)
    for number in range(count):
        published(api, services, f"record {number}")
    collect(api, services)
    assert on_disk(api, services) == [0]
    first = sum(path.stat().st_size for path in versions(api, services)[0][0].rglob("*") if path.is_file())
    inodes = {}
    for folder, _ in versions(api, services).values():
        for path in folder.rglob("*"):
            if path.is_file() and "delta" not in path.parts and path.name not in EVIDENCE:
                inodes[path.stat().st_ino] = path.stat().st_size
    assert sum(inodes.values()) <= 1.1 * first
    for number, (folder, sha256) in versions(api, services).items():
        bring_back(services, number)
        assert file_sha256(folder / WEIGHTS) == sha256


EVIDENCE = ("certificate.dsse.json", "certificate.tlog-proof", "model.sig", "trust.json", "README.md")  # all small


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_whatever_happens_every_version_can_be_rebuilt(api, services, keeping, seed):
    """Versions are published, withdrawn, collected and rebuilt in any order."""
    dice = random.Random(seed)
    keeping(dice.choice([0, 1, 2]))
    published(api, services, "the first")
    for step in range(8):
        remaining = [
            one["version"] for one in api.get("/v1/models/tiny/versions").json()["items"] if not one["withdrawn_at"]
        ]
        match dice.choice(["publish", "publish", "withdraw", "collect", "rebuild"]):
            case "publish":
                bring_back(services, remaining[0])
                published(api, services, f"record {step}")
            case "withdraw" if remaining[0] > 0:
                withdraw(api, remaining[0])
            case "rebuild":
                bring_back(services, dice.choice(sorted(versions(api, services))))
            case _:
                collect(api, services)
    for number, (folder, sha256) in versions(api, services).items():
        bring_back(services, number)
        assert file_sha256(folder / WEIGHTS) == sha256


def test_a_job_keeps_what_it_begins_from_and_brings_it_back(api, services, keeping):
    """Its parent stays; if every later version was withdrawn, the parent is rebuilt first."""
    keeping(0)
    published(api, services, "one")
    published(api, services, "two")
    assert collect(api, services) == [1, 2]
    withdraw(api, 2)
    submit(api, records=[{"text": "three"}])
    assert batch_requests(services, only_model(services)) is None  # it asks for a rebuilding
    bring_back(services, 1)
    job_id = batch_requests(services, only_model(services))
    with services.db.reading() as session:
        assert jobs.by_id(session, job_id).parent_version.number == 1
    assert on_disk(api, services) == [0, 1]
    assert collect(api, services) == []  # the job needs it
    (versions(api, services)[1][0] / WEIGHTS).unlink()
    with pytest.raises(Rebuilding):  # a restored database knows a job that begins from what is not there any more
        check_files(services, job_id)


def test_a_download_waits_until_the_weights_are_back(api, services, keeping, monkeypatch):
    """It is refused for now, and wakes the rebuilding; every way to the file says so. Nothing is found wrong."""
    keeping(0)
    published(api, services, "one")
    collect(api, services)
    woken = []
    monkeypatch.setattr(type(services.queue), "wake", lambda _, *what, **__: woken.append(what))
    whole = (f"/v1/models/tiny/versions/1/files/{WEIGHTS}", "/v1/models/tiny/versions/1/archive.tar")
    for path in (*whole, "/hub/unlearnd/tiny/resolve/v1/model.safetensors"):
        answer = api.get(path)
        assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "rebuilding", "5")
    assert {what[0] for what in woken} == {"rebuild"}
    head = api.head("/hub/unlearnd/tiny/resolve/v1/model.safetensors")
    assert (head.status_code, head.headers["content-length"]) == (200, head.headers["x-linked-size"])
    assert api.get("/v1/models/tiny/versions/1/downloads").json()["items"] == []  # nobody got anything
    assert api.get("/v1/models/tiny/versions/1/delta.tar").status_code == 200
    assert scrub_next(services)
    assert scrub_next(services)
    assert not [finding for finding in examine(services) if finding.check in ("versions", "ledger")]
    bring_back(services, 1)
    assert api.get("/v1/models/tiny/versions/1/files/" + WEIGHTS).status_code == 200


@pytest.mark.parametrize("point", ["collect.renamed", "rebuild.moved"])
def test_a_kill_in_between_loses_nothing(api, services, keeping, monkeypatch, point):
    """Whatever is missing then is rebuilt."""
    keeping(0)
    published(api, services, "one")

    def killed(reached: str) -> None:
        if reached == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(local if point == "collect.renamed" else collected, "reach", killed)
        if point == "collect.renamed":
            with pytest.raises(KeyboardInterrupt):
                collect(api, services)
        else:
            collect(api, services)
            with pytest.raises(KeyboardInterrupt):
                bring_back(services, 1)
    bring_back(services, 1)
    folder, sha256 = versions(api, services)[1]
    assert file_sha256(folder / WEIGHTS) == sha256
    assert api.get("/v1/models/tiny/versions/1/files/" + WEIGHTS).status_code == 200


@pytest.mark.parametrize("damaged", ["delta", "base"])
def test_weights_that_cannot_be_rebuilt_are_not_removed(api, services, keeping, damaged):
    """It is tried first; the doctor names the version."""
    keeping(0)
    published(api, services, "one")
    adapter = versions(api, services)[1][0] / "delta" / "adapter_model.safetensors"
    path = adapter if damaged == "delta" else versions(api, services)[0][0] / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert collect(api, services) == []
    assert on_disk(api, services) == [0, 1]
    assert [finding.check for finding in examine(services) if "delta" in finding.problem] == ["versions"]


def test_a_rebuilding_that_must_stop_leaves_things_as_they_are(api, services, keeping):
    """The process is to end."""
    keeping(0)
    published(api, services, "one")
    grow_old(api, services)
    assert collect_weights(services, only_model(services), lambda: False) == []
    assert collect(api, services) == [1]
    with services.db.reading() as session:
        version = models.version(session, models.by_name(session, "tiny"), 1)
    rebuild(services, version.id, lambda: False)
    assert on_disk(api, services) == [0]


def test_a_higher_keep_brings_weights_back(api, services, keeping, monkeypatch):
    """The next collection asks for them; so does the task that collects for every model."""
    keeping(0)
    published(api, services, "one")
    assert collect(api, services) == [1]
    with services.db.transaction() as session:
        models.by_name(session, "tiny", lock=True).policy = {"keep": 1}
    woken = []
    monkeypatch.setattr(type(services.queue), "wake", lambda _, *what, **__: woken.append(what))
    assert collect(api, services) == []
    assert [what[0] for what in woken] == ["rebuild"]
    tasks._collect_weights(services)
    assert [what[0] for what in woken] == ["rebuild", "rebuild"]


@pytest.mark.slow
@pytest.mark.usefixtures("durable")
def test_a_version_that_the_database_forgot_is_taken_up_without_its_weights(api, services, keeping, run):
    """They are rebuilt first, so that the release can be verified."""
    keeping(0)
    published(api, services, "one")
    run("backup")
    published(api, services, "two")
    assert collect(api, services) == [1, 2]
    second = api.get("/v1/models/tiny/versions/2").json()["digest"]
    run("restore-database")
    assert "taken up again: tiny/2" in run("restore")
    assert api.get("/v1/models/tiny/versions/2").json()["digest"] == second
    assert on_disk(api, services) == [0, 2]  # the delta of the second changes version 0


def test_the_client_waits_for_a_rebuilding(tmp_path, monkeypatch):
    """It asks again when the service says so, and reports any other refusal."""
    problem = {"title": "Temporarily unavailable", "detail": "", "code": "rebuilding"}
    answers = [httpx.Response(503, json=problem, headers={"Retry-After": "5"})] * 2 + [
        httpx.Response(200, content=b"w")
    ]
    file = {"path": WEIGHTS, "size": 1, "sha256": hashlib.sha256(b"w").hexdigest()}
    monkeypatch.setattr(download, "REBUILDING_SECONDS", 0)
    monkeypatch.setattr(download, "MAX_DELAY", 0)
    with httpx.Client(transport=httpx.MockTransport(lambda _: answers.pop(0))) as http:
        assert download_file(http, "http://service/", tmp_path / "weights", file, lambda *_: None)
    assert (tmp_path / "weights").read_bytes() == b"w"
    refusal = httpx.Response(503, json={**problem, "code": "unavailable"}, headers={"Retry-After": "5"})
    with httpx.Client(transport=httpx.MockTransport(lambda _: refusal)) as http, pytest.raises(ClientError):
        download_file(http, "http://service/", tmp_path / "other", file, lambda *_: None)
    monkeypatch.setattr(download, "REBUILT_SECONDS", -1)  # it does not ask for ever
    never = httpx.Response(503, json=problem)
    with httpx.Client(transport=httpx.MockTransport(lambda _: never)) as http, pytest.raises(ClientError):
        download_file(http, "http://service/", tmp_path / "other", file, lambda *_: None)
