"""The Helm chart: it lints, renders what Kubernetes takes, and starts the service with its commands and environment."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest
from sqlalchemy import func, text, update

from service.api.health import metrics_registry
from service.client.http import Client
from service.config import Settings
from service.db import models
from service.db.recheck_tables import Recheck, RecheckShard
from service.db.tables import Job
from service.local import postgres
from service.local.process import wait_until
from service.shard_lease import hold_shard
from tests import ROOT, support
from tests.service.jobs import claim, expire
from tests.service.served import free_port

CHART, HELM = ROOT / "docker" / "chart", Path(sys.executable).with_name("helm")
URL = "https://deletion.example.org"
FULL = {
    "publicUrl": URL,
    "claims": {"models": "models", "corpora": "corpora"},
    "settings": {"UNLEARND_ISSUER": "example.org", "UNLEARND_ALERT_DAYS": "5"},
    "api": {"processes": 2},
    "compute": {"nodeSelector": {"gpu": "yes"}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
    "networkPolicies": {"ingressFrom": [{"namespaceSelector": {}}]},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
}
ON_A_BUCKET = {
    "publicUrl": URL,
    "storageUrl": "s3://unlearnd/prefix",
    "secrets": {"buckets": {"api": "bucket-api", "control": "bucket-control", "compute": "bucket-compute"}},
    "storageVolume": {"emptyDir": {"sizeLimit": "200Gi"}},
    "api": {"serviceAccount": "api"},
    "control": {"serviceAccount": "control"},
    "compute": {"serviceAccount": "compute"},
}
OWN_KINDS = {
    "ScaledJob",
    "TriggerAuthentication",
    "ServiceMonitor",
    "PrometheusRule",
}  # Kubernetes has no schema of them


def helm(command: str, values: dict, tmp_path: Path) -> subprocess.CompletedProcess:
    """Run Helm on the chart with these values."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    arguments = [str(HELM), *command.split(), str(CHART), "--values", str(file)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)})


def rendered(values: dict, tmp_path: Path) -> dict[tuple[str, str], dict]:
    """(kind, name without the release's) -> document."""
    done = helm("template release", values, tmp_path)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(d["kind"], d["metadata"]["name"].removeprefix("release-")): d for d in documents}


def containers(documents: dict) -> dict[str, dict]:
    """Name -> container, of every pod template."""
    specs = [document["spec"] for document in documents.values() if "spec" in document]
    templates = [spec.get("jobTargetRef", spec).get("template") for spec in specs]
    return {c["name"]: c for t in templates if t for c in t["spec"]["containers"]}


@pytest.mark.parametrize("values", [{"publicUrl": URL}, FULL, ON_A_BUCKET], ids=["least", "full", "bucket"])
def test_the_chart_renders_what_kubernetes_takes(values, tmp_path):
    """Against the schemas of the oldest version that the chart names, and of a new one; unknown fields are errors."""
    linted = helm("lint --strict", values, tmp_path)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    documents = rendered(values, tmp_path)
    for (kind, _), document in documents.items():
        for version in ("1.27.0", "1.37.0") if kind not in OWN_KINDS else ():
            kubernetes_validate.validate(document, version, strict=True)
    kinds = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "Job"}
    assert {kind for kind, _ in documents} - OWN_KINDS == kinds
    assert (("PrometheusRule", "release") in documents) == ("monitoring" in values)
    for container in containers(documents).values():
        security = container["securityContext"]
        assert (security["runAsNonRoot"], security["readOnlyRootFilesystem"]) == (True, True)
        assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "publicUrl"),
        ({"publicUrl": "deletion.example.org"}, "publicUrl"),
        ({"publicUrl": URL, "compute": {"replicas": 3}}, "replicas"),
        ({"publicUrl": URL, "settings": {"ISSUER": "x"}}, "ISSUER"),
        ({"publicUrl": URL, "settings": {"UNLEARND_MAX_BODY_BYTES": 16_777_216}}, "UNLEARND_MAX_BODY_BYTES"),
        ({"publicUrl": URL, "images": {"api": {"repository": "x", "tag": ""}}}, "tag"),
    ],
)
def test_wrong_values_are_refused_by_name(values, said, tmp_path):
    """Helm checks them against the chart's schema."""
    done = helm("template release", values, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr


def test_each_part_has_settings_that_exist_and_the_secrets_of_its_own(tmp_path):
    """Each logs in as itself; the API has no signing key of releases, and compute only what opens texts."""
    documents = rendered(FULL, tmp_path)
    known = {f"UNLEARND_{name.upper()}" for name in Settings.model_fields}
    logins, parts = {}, containers(documents)
    for name, container in parts.items():
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables.keys() <= known, name
        if "UNLEARND_DATABASE_URL" in variables:
            logins[name] = variables["UNLEARND_DATABASE_URL"]["valueFrom"]["secretKeyRef"]["key"]
    assert logins == {"api": "api", "control": "control", "worker": "compute"}
    pods = {
        "api": documents["Deployment", "api"]["spec"]["template"],
        "control": documents["Deployment", "control"]["spec"]["template"],
        "compute": documents["ScaledJob", "compute"]["spec"]["jobTargetRef"]["template"],
    }
    keys = {}
    for name, pod in pods.items():
        (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "keys"]
        keys[name] = [item["key"] for item in volume["secret"].get("items", [])]
    assert keys["compute"] == ["kek"]
    assert keys["control"] == []  # all of them
    assert not {"release.pem", "certificate.pem", "log.pem"} & set(keys["api"])
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in parts["worker"]["volumeMounts"]}
    assert mounts["/storage"]
    assert not mounts["/storage/work"]


def test_with_a_bucket_no_volume_is_shared_but_the_epoch_keys(tmp_path):
    """Each pod has an empty folder of its own, its own variables of the bucket, and its own role."""
    documents = rendered(ON_A_BUCKET, tmp_path)
    pods = {
        "api": documents["Deployment", "api"]["spec"]["template"]["spec"],
        "control": documents["Deployment", "control"]["spec"]["template"]["spec"],
        "compute": documents["ScaledJob", "compute"]["spec"]["jobTargetRef"]["template"]["spec"],
    }
    for name, pod in pods.items():
        assert pod["serviceAccountName"] == name
        assert [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v] == ["epochs"]
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": f"bucket-{name}"}}]
        assert {"name": "storage", "emptyDir": {"sizeLimit": "200Gi"}} in pod["volumes"]
        assert {"name": "UNLEARND_STORAGE_URL", "value": "s3://unlearnd/prefix"} in container["env"]
        (storage,) = [mount for mount in container["volumeMounts"] if mount["mountPath"].startswith("/storage")]
        assert not storage.get("readOnly")


def test_keda_counts_what_a_worker_would_claim(services, job, tmp_path, as_process):
    """By its login: a job that waits, and one whose lease ran out; not one that is held, or that waits its time."""
    (trigger,) = rendered(FULL, tmp_path)["ScaledJob", "compute"]["spec"]["triggers"]
    query = text(trigger["metadata"]["query"])

    def counted() -> int:
        with as_process("compute").db.reading() as session:
            return session.scalar(query)

    _, job_id = job
    assert counted() == 1
    claim(services, job_id)
    assert counted() == 0
    expire(services, job_id)
    assert counted() == 1
    with services.db.transaction() as session:
        session.execute(update(Job).values(losses=10))  # it pauses for four minutes
    expire(services, job_id, 60)
    assert counted() == 0
    with services.db.transaction() as session:
        later = {"owner": None, "not_before": func.now() + timedelta(hours=1)}
        session.execute(update(Job).values(**later))
    assert counted() == 0
    with services.db.transaction() as session:
        model = session.get(Job, job_id).model
        recheck = Recheck(model_id=model.id, version_id=models.version(session, model, 0).id, requests=2)
        session.add(recheck)
        session.flush()
        session.add_all(RecheckShard(recheck_id=recheck.id, first_seq=seq, last_seq=seq) for seq in (1, 2))
    assert counted() == 2
    with hold_shard(as_process("compute")):
        assert counted() == 1


def test_alerts_are_of_metrics_that_exist(services, model, tmp_path):
    """Every rule has a severity, a summary and a runbook, and its metrics are among the service's."""
    (group,) = rendered(FULL, tmp_path)["PrometheusRule", "release"]["spec"]["groups"]
    shown = generate_latest(metrics_registry(services)).decode()
    names = set(re.findall(r"^# TYPE (\S+) ", shown, re.M)) | {
        "unlearnd_next_deadline_seconds"
    }  # shown once one is due
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 5
    for rule in group["rules"]:
        used = {re.sub(r"_(count|bucket)$", "", name) for name in re.findall(r"unlearnd_\w+", rule["expr"])}
        assert used <= names, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "runbook"}


class Pods:
    """The chart's containers as processes of this machine, each with its environment."""

    def __init__(self, services, documents: dict, models: Path, place: Path, bucket: dict[str, str]) -> None:
        """Nothing runs yet. `bucket` is what the Secret of the bucket has, if storage is one."""
        self._bucket = bucket
        self._parts, self._place, self.port = containers(documents), place, free_port()
        self._query = text(documents["ScaledJob", "compute"]["spec"]["triggers"][0]["metadata"]["query"])
        self._services, settings = services, services.settings
        url = settings.database_url
        self._secrets = {name: url.replace(postgres.APP_ROLE, login, 1) for name, login in postgres.LOGINS.items()}
        self._secrets |= {"owner": settings.owner_database_url, "url": settings.broker_url}
        keys, epochs = str(settings.keys_dir), str(settings.keys_dir / "epochs")
        self._moved = {"/storage": str(settings.storage_dir), "/keys": keys, "/epochs": epochs, "/models": str(models)}
        self._moved |= {"/corpora": str(place), URL: f"http://127.0.0.1:{self.port}", "8000": str(self.port)}
        self._moved |= {"0.0.0.0": "127.0.0.1", "/tmp/beat": str(place / "beat")}

    def start(self, name: str) -> subprocess.Popen:
        """Start a container's command."""
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(self._place)}
        for variable in self._parts[name]["env"]:
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret and secret.get("optional") and secret["key"] not in self._secrets:
                continue
            value = self._secrets[secret["key"]] if secret else variable["value"]
            environment[variable["name"]] = self._moved.get(value, value)
        if self._bucket:  # each pod has an empty folder
            environment |= {**self._bucket, "UNLEARND_STORAGE_DIR": str(self._place / f"storage-{name}")}
        program, *arguments = self._parts[name]["command"]
        command = [str(Path(sys.executable).with_name(program)), *(self._moved.get(part, part) for part in arguments)]
        with (self._place / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def answers(self, probe: str) -> bool:
        """Whether a probe of the API holds."""
        path = self._parts["api"][probe]["httpGet"]["path"]
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def wanted(self) -> int:
        """How many compute pods KEDA would start."""
        with self._services.db.reading() as session:
            return session.scalar(self._query)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["claims", "bucket"])
def test_the_charts_own_commands_take_a_request_to_a_version(
    services, memorised_folder, new_key, tmp_path, storage, request
):
    """Every container as a process, with its environment and its probes; compute for as long as KEDA's query counts."""
    values = {**FULL, "settings": {"UNLEARND_SWEEP_SECONDS": "1"}, "monitoring": {"enabled": False}}
    variables = {}
    if storage == "bucket":
        values["storageUrl"] = request.getfixturevalue("bucket_url")
        variables = request.getfixturevalue("s3")
    pods = Pods(services, rendered(values, tmp_path), memorised_folder, tmp_path, variables)
    assert pods.start("migrate").wait(60) == 0
    with ExitStack() as stack:
        for name in ("api", "control"):
            running = pods.start(name)
            stack.callback(running.wait, 60)
            stack.callback(running.send_signal, signal.SIGTERM)
        assert wait_until(lambda: pods.answers("startupProbe"), 60)
        assert wait_until(lambda: pods.answers("readinessProbe"), 60)
        with Client(f"http://127.0.0.1:{pods.port}", new_key("admin")) as client:
            files = [str(memorised_folder / name) for name in ("model", "retain.jsonl", "heldout.jsonl")]
            client.add_model("charted", *files, support.POLICY)
            request = client.submit("charted", [support.KNOWN[0]])
            assert wait_until(lambda: pods.wanted() == 1, 60)
            assert pods.start("worker").wait(300) == 0  # nothing is left, so it has ended by itself
            assert pods.wanted() == 0
            assert client.wait(request["id"], 60)["status"] == "completed"
        assert pods.answers("livenessProbe")
