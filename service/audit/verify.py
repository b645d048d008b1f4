"""Check a release folder with files alone: no database, no network, no trust in whoever served it.

    1  certificate   there, readable, in canonical form, of our kind and schema    50 incomplete, 12 malformed
    2  signature     by keys of `trust.json` that count, none twice                10 bad signature, 11 untrusted key
    3  wording       claims no more than the tests, names nobody                   40 policy failure
    4  files         exactly those that the certificate lists, byte for byte       20 artefact mismatch
    5  model.sig     a release key signed the same model files                     10, 11, 12, 20, 50
    6  policy        the results add up to PASS; `overall` is not believed         40 policy failure
    7  log           has the record, and had the thresholds before the run         30 log failure, 11, 40, 50
    8  keys          counted, and were enough, at the time of the log's entry      11 untrusted key
    9  lineage       follows the parent, whose folder may be given                 40 policy failure

The first step that fails ends it. An empty list is a failure, never a pass.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.checkpoint import Checkpoint, Proof, UnknownSigner
from service.audit.dsse import NotAnEnvelope
from service.audit.manifest import NotPlain, file_entries, list_paths, manifest, manifest_digest
from service.audit.merkle import LogError
from service.audit.policy import policy_problems
from service.audit.schema import schema_problem
from service.audit.trust import (
    SKEW,
    Key,
    Trust,
    Untrusted,
    open_bundle,
)  # fmt: skip
from service.audit.verification import (
    CERTIFICATE,
    ExitCode,
    VerificationError,
    load_trust,
    open_certificate,
    require_signatures,
)
from service.audit.wording import problem_in

PROOF = "certificate.tlog-proof"
MODEL_SIGNATURE = "model.sig"
UNBOUND = {CERTIFICATE, PROOF}  # a certificate cannot list its own digest, nor that of what was made after it
LATEST = dt.timedelta(days=1)  # from issuing a record to its entry in the log
STEPS = ("certificate", "signature", "wording", "files", "model.sig", "policy", "log", "keys", "lineage")


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to hold.

    Attributes:
        statement: The statement, parsed.
        keyids: The trusted keys whose signature holds.
        own_trust: The trusted keys came with the release, so this shows integrity, not origin.
        checkpoint: The log's checkpoint in which it was found; keep it, a later one must be consistent with it.
    """

    statement: dict[str, Any]
    keyids: list[str]
    own_trust: bool
    checkpoint: Checkpoint


def verify(
    folder: Path,
    trust: Path | None = None,
    parent: Path | None = None,
    *,
    passed: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Run every step on a release folder.

    Args:
        folder: The release folder.
        trust: A `trust.json` obtained from the issuer by other means; None takes the folder's own.
        parent: The release folder of the version before, for its part of the lineage.
        passed: Told the name of each step that holds.

    Raises:
        VerificationError: Some step failed; its code and reason say which.
    """
    try:
        return _verify(folder, trust, parent, passed)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise VerificationError(
            ExitCode.MALFORMED, f"garbled where it was not expected ({type(error).__name__})"
        ) from error


def _verify(folder: Path, trust: Path | None, parent: Path | None, passed: Callable[[str], None]) -> Verified:
    trusted = load_trust(trust or folder / "trust.json")
    envelope = _bytes(folder / CERTIFICATE)
    statement, signers = open_certificate(envelope, trusted)
    predicate = statement["predicate"]
    wrong, unfit = problem_in(predicate), schema_problem(statement)
    if unfit and not wrong:
        raise VerificationError(ExitCode.MALFORMED, f"the statement does not fit its schema: {unfit}")
    passed("certificate")
    passed("signature")
    if wrong:
        raise VerificationError(ExitCode.POLICY_FAILURE, wrong)
    passed("wording")
    listed = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    _check_files(folder, listed, len(statement["subject"]))
    passed("files")
    releaser = check_model_signature(folder / MODEL_SIGNATURE, listed, trusted)
    passed("model.sig")
    for reason in policy_problems(predicate):
        raise VerificationError(ExitCode.POLICY_FAILURE, reason)
    passed("policy")
    proof = _read_proof(folder / PROOF)
    checkpoint, logged = _check_log(proof, envelope, predicate, trusted)
    passed("log")
    _check_times(trusted, signers, releaser, proof, logged["at"], predicate["issued_at"])
    passed("keys")
    _check_parent(parent, predicate["lineage"])
    passed("lineage")
    return Verified(statement, [key.keyid for key in signers], trust is None, checkpoint)


def _bytes(path: Path) -> bytes:
    try:
        if path.is_file() and not path.is_symlink():
            return path.read_bytes()
    except OSError as error:
        raise VerificationError(ExitCode.INCOMPLETE, f"{path.name} cannot be read ({error.strerror})") from error
    raise VerificationError(ExitCode.INCOMPLETE, f"{path.name} is missing")


def _check_files(folder: Path, listed: dict[str, str], count: int) -> None:
    """Exactly the listed files are there, byte for byte."""
    if not listed or len(listed) != count:
        raise VerificationError(ExitCode.MALFORMED, "the statement lists no file, or one twice")
    try:
        present = set(list_paths(folder)) - UNBOUND
        for path in sorted(present ^ set(listed)):
            what = "is missing" if path in listed else "is not in the certificate"
            raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{path} {what}")
        for found in file_entries(folder, sorted(listed)):
            if found["sha256"] != listed[found["path"]]:
                raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{found['path']} differs from what was certified")
    except NotPlain as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, str(error)) from error
    except OSError as error:
        name = Path(error.filename or folder).name
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{name} cannot be read ({error.strerror})") from error


def check_model_signature(path: Path, listed: dict[str, str], trust: Trust) -> Key:
    """Who signed `model.sig`, if it speaks of the same model files as the certificate; nothing is hashed twice.

    Raises:
        VerificationError: Missing, not a bundle, signed by no key that counts, or of other files.
    """
    try:
        payload, key = open_bundle(_bytes(path), trust.keys_for("release"))
        resources = json.loads(payload)["predicate"]["resources"]
    except NotAnEnvelope as error:
        raise VerificationError(ExitCode.MALFORMED, f"{path.name} is not a bundle of Model Signing") from error
    except Untrusted as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"{path.name}: {error}") from error
    signed = {f"model/{r['name']}": r["digest"] for r in resources if r["algorithm"] == "sha256"}
    if signed != {name: digest for name, digest in listed.items() if name.startswith("model/")}:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{path.name} is of other model files")
    return key


def _read_proof(path: Path) -> Proof:
    data = _bytes(path)
    try:
        return Proof.loads(data.decode())
    except (LogError, UnicodeDecodeError) as error:
        raise VerificationError(ExitCode.LOG_FAILURE, f"{path.name}: not a log proof") from error


def _check_log(
    proof: Proof, envelope: bytes, predicate: dict[str, Any], trust: Trust
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint in whose tree the record is, and its entry; its thresholds were there before."""
    checkpoint, entry = _proved(PROOF, proof, trust)
    digest = hashlib.sha256(envelope).hexdigest()
    if (entry["kind"], entry["certificate"], entry["overall"]) != ("job.certified", digest, "PASS"):
        raise VerificationError(ExitCode.LOG_FAILURE, "the log's entry is of another certificate")
    if checkpoint.origin != predicate["log"]["origin"]:
        raise VerificationError(ExitCode.LOG_FAILURE, "the proof is of another log than the certificate names")
    before = Proof.loads(predicate["log"]["thresholds"])
    earlier, fixed = _proved("the proof of the thresholds", before, trust)
    if earlier.origin != checkpoint.origin or earlier.size > checkpoint.size or before.index >= proof.index:
        raise VerificationError(ExitCode.LOG_FAILURE, "the thresholds are not in the log before the certificate")
    if (fixed["kind"], fixed["job"]) != ("job.thresholds", entry["job"]):
        raise VerificationError(ExitCode.LOG_FAILURE, "the log's entry is of other thresholds")
    if predicate["log"]["before"] != fixed["before"] or fixed["before"]["size"] > before.index:
        raise VerificationError(ExitCode.LOG_FAILURE, "the certificate and the log differ on the log before the run")
    for name, value in (
        ("thresholds", predicate["verification"]["thresholds"]), ("parameters", predicate["method"]["parameters"]),
    ):  # fmt: skip
        if fixed[name] != hashlib.sha256(dumps(value)).hexdigest():
            raise VerificationError(ExitCode.POLICY_FAILURE, f"the {name} are not those that were fixed before the run")
    return checkpoint, entry


def _proved(what: str, proof: Proof, trust: Trust) -> tuple[Checkpoint, dict[str, Any]]:
    try:
        return proof.check(trust.log_keys), loads(proof.entry)
    except UnknownSigner as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"{what}: {error}") from error
    except (LogError, NotCanonical) as error:
        raise VerificationError(ExitCode.LOG_FAILURE, f"{what}: {error}") from error


def _check_times(trust: Trust, signers: Sequence[Key], releaser: Key, proof: Proof, at: str, issued_at: str) -> None:
    """The keys counted, and were enough, when the log took the record in: about when it says it was issued.

    The log's own key signed a checkpoint of then or later, so it is only asked whether it was in use after that.
    """
    logged, issued = (dt.datetime.fromisoformat(time) for time in (at, issued_at))
    if not -SKEW <= logged - issued <= LATEST:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "the record was not issued when the log took it in")
    counted = [key.role for key in (*signers, releaser) if not key.counts_at(logged)]
    counted += [key.role for key in trust.keys_for("log").values() if _signed(key, proof) and not key.in_use_at(logged)]
    for role in counted:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"the {role} key did not count when the record was made")
    require_signatures(trust, signers, logged)


def _signed(key: Key, proof: Proof) -> bool:
    """Whether this log key signed the proof's checkpoint."""
    try:
        proof.check(Trust([key], []).log_keys)
    except LogError:
        return False
    return True


def _check_parent(parent: Path | None, lineage: dict[str, Any]) -> None:
    """The folder of the version before is what the lineage names."""
    if parent is None:
        return
    try:
        files = manifest_digest(manifest(parent))
    except (NotPlain, OSError) as error:
        raise VerificationError(
            ExitCode.POLICY_FAILURE, "broken lineage: the parent's folder cannot be read"
        ) from error
    certificate = parent / CERTIFICATE
    digest = hashlib.sha256(certificate.read_bytes()).hexdigest() if certificate.exists() else None
    if (files, digest) != (lineage["parent_manifest"], lineage["parent_certificate"]):
        raise VerificationError(ExitCode.POLICY_FAILURE, "broken lineage: that folder is not of the parent version")
