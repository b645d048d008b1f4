"""An issuer in a folder: keys, a log in memory, and releases as the service makes them; for tests of the verifier."""

import base64
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from service.audit.canonical import dumps
from service.audit.certificate import RequestLine, certified_parameters, memorised_count, statement
from service.audit.checkpoint import Checkpoint, Proof, sign_checkpoint
from service.audit.commitments import forget_set_root
from service.audit.dsse import IN_TOTO
from service.audit.manifest import manifest
from service.audit.merkle import inclusion_proof, leaf_hash, over, root
from service.audit.numbers import threshold_ranges
from service.audit.verification import CERTIFICATE
from service.audit.verify import MODEL_SIGNATURE, PROOF, UNBOUND
from service.domain.disclosure import Contributors
from service.domain.report import Findings
from service.evidence.keyring import Keyring

ORIGIN = "test/log"
TABLE = [
    {"length": 26, "n": 10, "count": 30, "el_mean": 0.01, "ma_mean": 0.4, "el_p95": 0.0, "ma_p95": 0.5, "ma_p1": 0.1,
     "el_max": 0.02, "ma_max": 0.7},
    {"length": 30, "n": 10, "count": 30, "el_mean": 0.005, "ma_mean": 0.3, "el_p95": 0.0, "ma_p95": 0.5, "ma_p1": 0.1,
     "el_max": 0.02, "ma_max": 0.7},
]  # fmt: skip
REPORT = {  # values of `Findings`
    "outcome": "passed", "reason": None, "over_forgotten": 0, "retain_excluded": 0, "heldout_excluded": 0,
    "files": {"model/config.json": "7" * 64},
    "earlier": {"requests": 2, "regressed": [], "exact": 2},
    "artefact": {
        "sequence_length": 200, "weights_dtype": "float32", "evaluated_dtype": "float32", "adapter_sha256": "ab" * 32,
    },
    "thresholds": TABLE,
    "attacks": [
        {
            "name": "sampled", "effect": "report", "status": "RUN", "why": None, "passed": False,
            "level": 0.05 / 3, "figure": 0.3, "control": 0.002, "auc": 0.8, "p_value": 0.001, "texts": 3, "unseen": 60,
            "partial": False,
        },
        {
            "name": "membership_loss", "effect": "block", "status": "RUN", "why": None, "passed": True, "unseen": 60,
            "level": 0.05 / 3, "figure": -4.5678, "control": -4.4321, "auc": 0.51, "p_value": 0.8, "texts": 3,
            "partial": False,
        },
        {"name": "exposure", "effect": "block", "status": "NOT_RUN", "why": "not_applicable", "passed": None},
        {"name": "relearned", "effect": "off", "status": "NOT_RUN", "why": "off", "passed": None},
    ],
    "probes": {"asked": 12, "samples": 20, "answered_before": 4, "answered_after": 0},
    "limits": {"el": 0.01, "ma": 0.4},
    "before": {"el": 0.9, "ma": 0.95},
    "after": {"el": 0.0, "ma": 0.3},
    "utility": {
        "heldout_perplexity_before": 9.0, "heldout_perplexity_after": 9.18, "heldout_ratio": 1.02,
        "retain_perplexity_before": 8.0, "retain_perplexity_after": 8.0, "retain_ratio": 1.0, "max_ratio": 1.1,
        "within_budget": True, "first_heldout_perplexity": 9.0, "total_ratio": 1.02, "max_total_ratio": 1.32,
        "within_total_budget": True, "neighbour_ma_before": 0.9, "neighbour_ma_after": 0.88,
        "neighbour_loss_before": 0.4, "neighbour_loss_after": 0.39, "max_neighbour_loss": 0.03,
        "within_neighbour_limit": True,
    },
    "epochs": 2,
    "trajectory": [
        {"epoch": 1, "el": 0.2, "ma": 0.6, "perplexity": 9.1}, {"epoch": 2, "el": 0.0, "ma": 0.3, "perplexity": 9.18},
    ],
    "seconds": {"unlearn": 1.5},
    "environment": {
        "device": "cpu", "python": "3.12.1", "packages": {"torch": "2.9.0+cpu"}, "installed": "1" * 64,
        "code": "2" * 64,
    },
}  # fmt: skip
POLICY = {
    "max_perplexity_ratio": 1.1,
    "margin": 1.0,
    "max_epochs": 20,
    "loss": "ihl",
    "target_modules": None,
    "max_neighbour_loss": 0.03,
    "attacks": {"membership_loss": "block", "exposure": "block", "sampled": "report", "relearned": "off"},
}
LINES = [RequestLine(name * 32, b"\1" * 32, "PASS", None) for name in "bac"]
LINEAGE = {
    "model": "m", "version": 1, "parent_version": 0, "parent_manifest": "3" * 64, "parent_certificate": None,
    "supersedes": 0,
}  # fmt: skip


def findings(values: dict) -> Findings:
    """What the tests of a job found, of JSON values as `REPORT` has them."""
    return TypeAdapter(Findings).validate_python(values)


def contributors(submitters: int) -> Contributors:
    """So many submitters, with a sequence each."""
    return Contributors.count((submitter, 1) for submitter in range(submitters))


class Issuer:
    """Keys, and what is signed with them."""

    def __init__(self, folder: Path) -> None:
        """Make the keys in `folder`."""
        self.keyring = Keyring(folder)
        self.keyring.create()
        self.at = datetime.now(UTC)

    @property
    def trust_path(self) -> Path:
        """The `trust.json` that is given out of band."""
        return self.keyring.path("log").with_name("trust.json")

    def entry(self, kind: str, **data) -> bytes:
        """A log entry of now."""
        return dumps({"kind": kind, "at": self.at.isoformat(timespec="milliseconds"), **data})

    def prove(self, entries: list[bytes], index: int, origin: str = ORIGIN) -> Proof:
        """The proof of an entry in a log of these."""
        leaves = [leaf_hash(e) for e in entries]
        note = sign_checkpoint(Checkpoint(origin, len(leaves), root(leaves)), self.keyring.private("log"))
        return Proof(entries[index], index, inclusion_proof(over(leaves), len(leaves), index), note)

    def before_the_run(self, **changes) -> list[bytes]:
        """A log with the thresholds at index 2."""
        digests = {
            "thresholds": hashlib.sha256(dumps(threshold_ranges(findings(REPORT).thresholds))).hexdigest(),
            "parameters": hashlib.sha256(dumps(certified_parameters(POLICY))).hexdigest(),
        }
        fixed = {"job": "j", "before": {"size": 2, "root": "4" * 64}, **digests}
        return [b"{}", b"[]", self.entry("job.thresholds", **{**fixed, **changes})]

    def log_section(self, **changes) -> dict:
        """The certificate's word of the log."""
        proof = self.prove(self.before_the_run(), 2)
        return {"origin": ORIGIN, "before": {"size": 2, "root": "4" * 64}, "thresholds": proof.dumps(), **changes}

    def payload(self, files, **changes) -> bytes:
        """The canonical bytes of a statement over `files`."""
        requests = changes.get("requests", LINES)
        fields = {
            "certificate_id": "c" * 32,
            "issuer": "test",
            "issued_at": self.at,
            "lineage": LINEAGE,
            "log": self.log_section(),
            "files": files,
            "published": True,
            "forget_root": forget_set_root([(r.ref, r.commitment) for r in requests]),
            "requests": LINES,
            "records": 3,
            "contributors": contributors(memorised_count(r.reason for r in requests)),
            "reference_texts": [
                {"role": "retain", "sha256": "5" * 64, "records": 9},
                {"role": "heldout", "sha256": "6" * 64, "records": 200},
            ],
            "heldout_overlap": {"exact": 1, "near": 1},
            "parameters": POLICY,
            "report": REPORT,
            "overall": "PASS",
        } | changes
        return statement(findings=findings(fields.pop("report")), **fields)

    def certify(self, release: Path, payload: bytes) -> Path:
        """Sign a payload as the release's certificate, and enter it into the log."""
        (release / CERTIFICATE).write_bytes(self.keyring.sign("certificate", payload, IN_TOTO))
        return self.enter(release)

    def enter(self, release: Path, **changes) -> Path:
        """Enter the release's certificate into the log, and put the proof beside it."""
        digest = hashlib.sha256((release / CERTIFICATE).read_bytes()).hexdigest()
        fields = {"job": "j", "certificate": digest, "overall": "PASS", **changes}
        kind = fields.pop("kind", "job.certified")
        entries = [*self.before_the_run(), b"1", self.entry(kind, **fields), b"2"]
        (release / PROOF).write_text(self.prove(entries, 4).dumps())
        return release

    def release(self, folder: Path, **changes) -> Path:
        """A release folder with some model files."""
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / ".gitattributes").write_text("*.safetensors lfs")
        (folder / "model" / "model.safetensors").write_bytes(os.urandom(1000))
        (folder / "trust.json").write_bytes(self.keyring.trust())
        self.keyring.sign_model(folder / "model", folder / MODEL_SIGNATURE)
        return self.certify_folder(folder, **changes)

    def certify_folder(self, folder: Path, **changes) -> Path:
        """Certify a folder as it is."""
        files = [f for f in manifest(folder) if f["path"] not in UNBOUND]
        return self.certify(folder, self.payload(files, **changes))

    def again(self, release: Path, change) -> Path:
        """Certify a changed statement with the right keys: `change` takes and gives bytes."""
        return self.certify(release, change(release_payload(release)))

    def changed(self, release: Path, *path, to) -> Path:
        """Certify the statement with one value, at `path` in the predicate, replaced."""
        statement = json.loads(release_payload(release))
        place = statement["predicate"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to
        return self.certify(release, dumps(statement))


def release_payload(release: Path) -> bytes:
    """The payload of the release's certificate."""
    return base64.b64decode(json.loads((release / CERTIFICATE).read_bytes())["payload"])
