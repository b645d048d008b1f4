"""The main job over HTTP on real parts: two versions, every terminal state, a killed worker."""

import hashlib
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from service.audit.verify import verify
from service.local.process import wait_until
from service.schemas.models import DEFAULT_ATTACKS
from tests import support
from tests.e2e.conftest import ended, register
from worker.engine.data import encode
from worker.engine.metrics.memorization import accuracy, token_matches

UNLEARND = str(Path(sys.executable).parent / "unlearnd")


def mean_accuracy(folder: Path, texts) -> float:
    """Mean MA of texts on a downloaded model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = token_matches(model, [encode(tokenizer, text) for text in texts])
    return sum(map(accuracy, rows)) / len(rows)


def assert_copies(release: Path, version: int) -> None:
    """The certificate has a verdict for each quantised copy, and one that passed is made of the release."""
    copies = verify(release).statement["predicate"]["verification"]["quantised"]
    assert [(copy["scheme"], copy["result"]) for copy in copies] == [("int8", "PASS"), ("q4_k_m", None)]
    assert copies[1]["why"] in ("no_converter", "unsupported")  # no program of llama.cpp, or one unlike this tokenizer
    target = release.with_name(f"int8 of {version}")
    subprocess.run([UNLEARND, "quantise", str(release), str(target), "--scheme", "int8"], check=True)
    assert AutoConfig.from_pretrained(target).quantization_config["quant_method"] == "compressed-tensors"


def test_two_requests_one_job_then_a_second_version(stack, folder, tmp_path):
    """One window, one job, version 1; a later request makes version 2 of it; both download, verify and load."""
    base = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "model").iterdir()}
    client = stack.client
    support.write_texts(folder.parent / "others.jsonl", support.KNOWN[3:6])
    paths = [str(folder / part) for part in ("model", "retain.jsonl", "heldout.jsonl")]
    policy = {**support.POLICY, "quantise": ["int8", "q4_k_m"], "reserve": 0.05}
    client.add_model("main", *paths, policy, neighbours={"others": str(folder.parent / "others.jsonl")})
    sent = [client.submit("main", [support.KNOWN[i]]) for i in range(2)]
    first, second = (ended(stack, request) for request in sent)
    assert (first["status"], first["verdict"], first["version"]) == ("completed", "PASS", 1)
    assert (second["status"], second["verdict"]) == ("completed", "PASS")
    assert first["job_id"] == second["job_id"]
    later = ended(stack, client.submit("main", [support.KNOWN[2]]))
    assert (later["status"], later["version"]) == ("completed", 2), later
    latest = client.version("main")
    assert (latest["version"], latest["parent"]) == (2, 1)
    for version, forgotten in ((1, support.KNOWN[:2]), (2, support.KNOWN[:3])):
        target = tmp_path / f"v{version}"
        client.download("main", str(version), target)
        done = subprocess.run([UNLEARND, "verify", str(target), "--json"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["version"] == version
        predicate = verify(target).statement["predicate"]
        assert [texts["role"] for texts in predicate["corpora"]] == ["retain", "heldout", "neighbours/others"]
        earlier = predicate["verification"]["earlier"]
        assert earlier == {"requests": 2 * (version - 1), "regressed": [], "exact": 2 * (version - 1)}
        assert_copies(target, version)
        metrics = client.version("main", str(version))["metrics"]
        assert mean_accuracy(target / "model", forgotten[-1:]) <= 0.6
        assert metrics["after"]["ma"] <= metrics["limits"]["ma"]
        assert metrics["after"]["el"] <= metrics["limits"]["el"]
    job = client.job(first["job_id"])
    assert (job["stage"], job["outcome"], job["progress"], job["version"]) == ("done", "passed", 1.0, 1)
    kinds = [kind for kind, _ in client.events(first["job_id"])]
    assert kinds[0] == "stage"
    assert kinds[-1] == "done"
    assert {"thresholds", "epoch"} <= set(kinds)
    assert base == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "model").iterdir()}
    zero = {f["path"]: f["sha256"] for f in client.version("main", "0")["files"]}
    assert zero["model/model.safetensors"] == base["model.safetensors"]


@pytest.mark.slow
def test_what_was_never_memorised_needs_no_training(stack, folder):
    """`not_memorised`, no epoch, no version, and a record that says so."""
    register(stack, folder, "unseen")
    outcome = ended(stack, stack.client.submit("unseen", [support.people(1, seed=77)[0]]))
    assert (outcome["status"], outcome["verdict"], outcome["version"]) == ("not_memorised", "PASS", None)
    job = stack.client.job(outcome["job_id"])
    assert (job["epoch"], job["outcome"]) == (0, "not_memorised")
    assert stack.client.version("unseen")["version"] == 0
    envelope = stack.client.call("GET", f"/v1/jobs/{outcome['job_id']}/certificate")
    assert envelope["signatures"]


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        pytest.param({"learning_rate": 1e-7, "max_epochs": 1}, "criterion_missed", marks=pytest.mark.slow),
        pytest.param(
            {"max_perplexity_ratio": 0.01, "adaptive": False}, "utility_budget_exceeded", marks=pytest.mark.slow
        ),
        pytest.param({"attacks": {"exposure": "block"}}, "attack_not_run", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_fails_its_tests_publishes_nothing(stack, folder, policy, reason):
    """`failed` with the reason, still version 0, and a record with FAIL in it."""
    register(stack, folder, reason.replace("_", "-"), **policy)
    outcome = ended(stack, stack.client.submit(reason.replace("_", "-"), [support.KNOWN[0]]))
    assert (outcome["status"], outcome["reason"], outcome["version"]) == ("failed", reason, None)
    assert stack.client.version(reason.replace("_", "-"))["version"] == 0
    assert stack.client.call("GET", f"/v1/jobs/{outcome['job_id']}/certificate")["payload"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"target_modules": ["nope"]}, "unknown_plugin"),
        ({"attacks": dict.fromkeys(DEFAULT_ATTACKS, "block")}, "heldout_too_few"),
    ],
)
def test_a_job_that_cannot_be_run_fails_with_its_reason(stack, folder, policy, reason):
    """A policy that names no module, or asks for more held-out text than there is: permanent, so no second attempt."""
    register(stack, folder, reason.replace("_", "-"), **policy)
    outcome = ended(stack, stack.client.submit(reason.replace("_", "-"), [support.KNOWN[0]]))
    assert (outcome["status"], outcome["reason"], outcome["verdict"]) == ("failed", reason, "NOT_TESTED")
    assert f"compute child: {reason}: " in stack.logs()
    assert stack.client.job(outcome["job_id"])["attempts"] == 1


@pytest.mark.slow
def test_a_killed_compute_worker_loses_nothing(stack, folder):
    """kill -9 in mid-training: the supervisor restarts it, the job goes on from its last epoch, one version exists."""
    register(stack, folder, "killed", learning_rate=2e-4, adaptive=False, min_epoch_steps=8, max_epochs=200)
    request = stack.client.until_batched(stack.client.submit("killed", [support.KNOWN[3]])["id"])
    job_id = request["job_id"]
    assert wait_until(lambda: stack.client.job(job_id)["epoch"] >= 2, 120), stack.logs()[-4000:]
    reached = stack.client.job(job_id)["epoch"]
    children = stack.processes("worker.child")
    for process in stack.processes("compute@"):
        process.kill()
    outcome = ended(stack, request, 240)
    assert (outcome["status"], outcome["version"]) == ("completed", 1), (outcome, stack.logs()[-4000:])
    assert not any(child.is_running() for child in children)
    versions = stack.client.call("GET", "/v1/models/killed/versions")["items"]
    assert [v["version"] for v in versions] == [1, 0]
    epochs = [data["epoch"] for kind, data in stack.client.events(job_id) if kind == "epoch"]
    assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))
    assert epochs.count(1) <= 2  # told again from the checkpoint, not trained again
    assert max(epochs) > reached


class Listener(BaseHTTPRequestHandler):
    """A submitter's callback endpoint."""

    calls: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        """Keep the body."""
        self.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def listening():
    """The URL of a running `Listener`."""
    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_callback_and_command_line(stack, folder, tmp_path):
    """submit, watch, show, download and verify from the shell; the callback arrives; no text is in any log."""
    register(stack, folder, "from-the-shell")
    environment = {
        "UNLEARND_URL": stack.endpoint["url"],
        "PATH": "/usr/bin:/bin",
        "UNLEARND_API_KEY": Path(stack.endpoint["api_key_file"]).read_text(),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [UNLEARND, *arguments], capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with listening() as url:
        (tmp_path / "records.txt").write_text(support.KNOWN[4] + "\n")
        sent = ("--model", "from-the-shell", "--file", str(tmp_path / "records.txt"), "--callback-url", url)
        request = json.loads(run("requests", "submit", *sent, "--json"))
        assert "completed" in run("requests", "watch", request["id"])
        assert json.loads(run("requests", "show", request["id"], "--json"))["version"] == 1
        assert wait_until(lambda: bool(Listener.calls), 30)
    assert (Listener.calls[0]["id"], Listener.calls[0]["status"]) == (request["id"], "completed")
    run("models", "download", "from-the-shell", str(tmp_path / "release"))
    (tmp_path / "release" / "model" / "config.json.part").write_bytes(b"{")
    (tmp_path / "release" / "model" / "config.json").unlink()
    run("models", "download", "from-the-shell", str(tmp_path / "release"))
    assert run("verify", str(tmp_path / "release")).startswith("verified: from-the-shell version 1")
    (tmp_path / "release" / "model" / "config.json").write_text("{}")
    broken = subprocess.run(
        [UNLEARND, "verify", str(tmp_path / "release")], capture_output=True, text=True, check=False
    )
    assert broken.returncode == 20
    assert "verified" not in broken.stdout + broken.stderr
    assert "model/config.json" in broken.stderr
    wrong = subprocess.run(
        [UNLEARND, "requests", "show", "x"], capture_output=True, text=True, env=environment, check=False
    )
    assert wrong.returncode == 1
    assert "request_id" in wrong.stderr


def test_no_text_of_a_request_is_on_any_disk(stack):
    """Not in logs, the broker's folder, storage or temporary files, in any request that this stack has had."""
    numbers = [text.split("number ")[1].split()[0].encode() for text in support.KNOWN[:5]]
    for path in sorted(stack.data.rglob("*")):
        if path.is_file() and "corpora" not in path.parts:
            content = path.read_bytes()
            assert not any(number in content for number in numbers), path


def test_the_compute_worker_holds_no_signing_key(stack):
    """What it is told of keys is a folder with the key-encryption key alone; the others lie beside, for its betters."""
    (worker, *_) = stack.processes("compute@")
    keys = Path(worker.environ()["UNLEARND_KEYS_DIR"])
    assert [path.name for path in keys.iterdir()] == ["kek"]
    assert keys.stat().st_mode & 0o077 == 0
    for path in (stack.data / "keys").glob("*.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert {p.stem for p in (stack.data / "keys").glob("*.pem")} == {
        "certificate",
        "release",
        "log",
        "receipt",
        "opendsr",
    }
