"""The first of two PostgreSQL servers is lost under load, with commits that the second has not seen."""

import json
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.audit.checkpoint import read_checkpoint
from service.audit.trust import parse_trust
from service.audit.verify import verify
from service.bootstrap import Services, build
from service.config import Settings
from service.db import log_entries
from service.db.log_home import unseen_move
from service.local.process import wait_until
from tests import support
from tests.chaos.processes import Parts
from tests.chaos.run import POLICY
from tests.service.nodes import Nodes, nodes

MODELS, REQUESTS = ("one", "two"), 8
URL = "/v1/deletion-requests"


class Cluster(Parts):
    """All parts, on two PostgreSQL servers."""

    def __init__(self, place: Path, pair: Nodes) -> None:
        """Start them."""
        super().__init__(place, database=pair.url(), owner=pair.url("postgres"))
        self.make_keys()
        self.services: Services = build(Settings(**{name.lower(): value for name, value in self.settings.items()}))
        self.client = self.start_api()
        self.start("control")
        self.start("compute")

    def is_ready(self) -> bool:
        """Whether a request would be accepted."""
        try:
            return self.client.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def insist(self, path: str, key: str, body: dict[str, object]) -> dict[str, str]:
        """POST again and again, as a good client does, until it is answered."""
        answers: list[httpx.Response] = []

        def ask() -> bool:
            try:
                answers[:] = [self.client.post(path, json=body, headers={"Idempotency-Key": key})]
            except httpx.TransportError:
                return False
            assert answers[0].status_code in (201, 202, 503), answers[0].text
            return answers[0].is_success

        assert wait_until(ask, 120), self.logs()
        return answers[0].json()

    def close(self) -> None:
        """Stop everything."""
        self.stop()
        self.client.close()
        self.services.close()


@contextmanager
def cluster(pair: Nodes) -> Iterator[Cluster]:
    """Running processes."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-f-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        running = Cluster(Path(place), pair)
        try:
            yield running
        finally:
            running.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_late_standby_is_promoted_under_load(base, seed):
    """Whoever sends again what he sent has every request fulfilled; no version has two contents, the log one past."""
    chance, calm = random.Random(seed), threading.Event()
    with nodes() as pair, cluster(pair) as running:
        assert wait_until(running.is_ready, 60), running.logs()
        files = {"path": "model", "retain_path": "retain.jsonl", "heldout_path": "heldout.jsonl"}
        paths = {name: str(base / file) for name, file in files.items()}
        for name in MODELS:
            running.insist("/v1/models", name, {"name": name, "policy": POLICY, **paths})
        bodies = {
            f"key-{n}": {"model": MODELS[n % 2], "records": [{"text": support.KNOWN[n // 2]}]} for n in range(REQUESTS)
        }
        behind, gone = sorted(chance.sample(range(1, REQUESTS), 2))
        first: dict[str, dict[str, str]] = {}
        for number, (key, body) in enumerate(bodies.items()):
            if number == behind:
                pair.wait_for_second()
                pair.stop_second()
            if number == gone:
                calm.wait(chance.uniform(1, 8))
                note = running.services.log.checkpoint()
                pair.lose_first()
                pair.promote_second()
            first[key] = running.insist(URL, key, body)
            calm.wait(chance.uniform(0, 3))
        assert wait_until(running.is_ready, 60), running.logs()
        again = {key: running.insist(URL, key, body)["id"] for key, body in bodies.items()}
        states: dict[str, tuple[str, str]] = {}

        def all_end() -> bool:
            answers = {key: running.client.get(f"{URL}/{i}").json() for key, i in again.items()}
            states.update({key: (answer["status"], answer["reason"]) for key, answer in answers.items()})
            return all(answer["finished_at"] for answer in answers.values())

        assert wait_until(all_end, 400), (states, running.logs())
        assert set(states.values()) == {("completed", None)}, (states, running.logs())
        lost = {first[key]["ref"] for key in bodies if first[key]["id"] != again[key]}
        check(running, lost, note)


def check(running: Cluster, lost: set[str], note: str | None) -> None:
    """The operator hears of the move and of what the signed log knows; the log and storage have one past."""
    with running.services.db.reading() as session:
        move = unseen_move(session)
    assert move is not None
    with running.services.db.reading() as session:
        entries = log_entries.entries(session, 0, read_checkpoint(note).size if note else 0)
    signed_and_lost = lost & {entry["ref"] for entry in map(json.loads, entries) if entry["kind"] == "request.accepted"}
    assert signed_and_lost <= set(move.lost) <= lost  # those that were not signed are known to their submitters alone
    running.services.log.sign()
    if note is not None:
        signed = read_checkpoint(note)
        assert running.services.log.tree().subtree(0, signed.size) == signed.root
    trust = parse_trust(running.services.keyring.trust())
    published = Counter()
    for folder in map(running.services.storage.release, running.services.storage.releases()):
        if (folder / "certificate.dsse.json").exists():
            lineage = verify(folder, trust).statement["predicate"]["lineage"]
            published[lineage["model"], lineage["version"]] += 1
    assert set(published.values()) == {1}
    for name in MODELS:
        numbers = [version["version"] for version in running.client.get(f"/v1/models/{name}/versions").json()["items"]]
        assert sorted(numbers) == [0, *(number for model, number in sorted(published) if model == name)]
