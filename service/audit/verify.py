"""Checks a release folder from its files alone: no database, no network, no trust in whoever served the folder.

    1  certificate   exists, is readable and canonical, has our kind and schema    50 incomplete, 12 malformed
    2  signature     trusted keys of `trust.json` signed, none of them twice       10 bad signature, 11 untrusted key
    3  wording       claims no more than the tests show, and names nobody          40 policy failure
    4  files         are exactly those that the certificate lists, byte for byte   20 artefact mismatch
                     and its `trust.json` is not newer than the given one          11 untrusted key
    5  model.sig     a release key signed the same model files                     10, 11, 12, 20, 50
    6  policy        the results add up to PASS; `overall` is not trusted          40 policy failure
    7  log           holds the certificate, and held the thresholds before the run 30 log failure, 11, 40, 50
    8  keys          were valid, and as many as required, at the log entry's time  11 untrusted key
    9  lineage       follows the parent, whose folder may be given                 40 policy failure

The verifier stops at the first step that fails. An empty list is a failure, never a pass.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.checkpoint import Checkpoint, Proof, UnknownSigner
from service.audit.dsse import NotAnEnvelope
from service.audit.log_entry import LogEntry
from service.audit.manifest import DELTA_FOLDER, NotPlain, file_entries, list_paths, manifest, manifest_digest
from service.audit.merkle import LogError
from service.audit.policy import policy_problems
from service.audit.predicate import Lineage, Predicate, Statement
from service.audit.schema import schema_problem
from service.audit.trust import SKEW, Key, Trust, Untrusted, open_bundle
from service.audit.verification import (
    CERTIFICATE,
    GET_CURRENT,
    ExitCode,
    VerificationError,
    load_given_trust,
    load_trust,
    open_certificate,
    require_signatures,
)
from service.audit.wording import problem_in

PROOF, TRUST = "certificate.tlog-proof", "trust.json"
MODEL_SIGNATURE = "model.sig"
UNBOUND = {CERTIFICATE, PROOF}  # a certificate cannot list its own digest, nor the digest of its later proof
LATEST = dt.timedelta(days=1)  # between the issue of a certificate and its log entry
STEPS = ("certificate", "signature", "wording", "files", "model.sig", "policy", "log", "keys", "lineage")


@dataclass(frozen=True, slots=True)
class Verified:
    """A release that passed every step.

    Attributes:
        statement: The statement, parsed.
        keyids: The trusted keys that signed the certificate.
        own_trust: The trusted keys came with the release, so the result shows integrity but not origin.
        trust: The trusted keys.
        certificate: The hex sha256 of the certificate, by which the log knows it.
        checkpoint: The checkpoint of the log that holds the certificate. Keep it: later ones must agree with it.
    """

    statement: Statement
    keyids: list[str]
    own_trust: bool
    trust: Trust
    certificate: str
    checkpoint: Checkpoint


def verify(
    folder: Path,
    trust: Path | Trust | None = None,
    parent: Path | None = None,
    *,
    passed: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Run every step on a release folder.

    Args:
        folder: The release folder.
        trust: A `trust.json` that the issuer gave out in another way than the release; None uses the folder's own.
            The issuer itself passes its keys, which have no expiry for it.
        parent: The release folder of the parent version, to check the lineage against it.
        passed: Called with the name of each step that passes.

    Raises:
        VerificationError: A step failed; the code and the reason say which.
    """
    try:
        return _verify(folder, trust, parent, passed)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise VerificationError(ExitCode.MALFORMED, f"the release is malformed ({type(error).__name__})") from error


def _verify(folder: Path, trust: Path | Trust | None, parent: Path | None, passed: Callable[[str], None]) -> Verified:
    """The nine steps, in order."""
    trusted = trusted_keys(folder, trust)
    envelope = read_file(folder / CERTIFICATE)
    statement, signers = open_certificate(envelope, trusted)
    predicate = statement["predicate"]
    wording_problem, form_problem = problem_in(predicate), schema_problem(statement)
    if form_problem and not wording_problem:
        raise VerificationError(ExitCode.MALFORMED, f"the statement does not fit its schema: {form_problem}")
    passed("certificate")
    passed("signature")
    if wording_problem:
        raise VerificationError(ExitCode.POLICY_FAILURE, wording_problem)
    passed("wording")
    listed = {file["name"]: file["digest"]["sha256"] for file in statement["subject"]}
    _check_files(folder, listed, len(statement["subject"]))
    if isinstance(trust, Path) and TRUST in listed:
        _check_current(trusted, load_trust(folder / TRUST))
    passed("files")
    release_key = check_model_signature(folder / MODEL_SIGNATURE, listed, trusted)
    passed("model.sig")
    for reason in policy_problems(predicate):
        raise VerificationError(ExitCode.POLICY_FAILURE, reason)
    passed("policy")
    proof = _read_proof(folder / PROOF)
    checkpoint, entry = _check_log(proof, envelope, predicate, trusted)
    passed("log")
    _check_times(trusted, signers, release_key, proof, entry["at"], predicate["issued_at"])
    passed("keys")
    _check_parent(parent, predicate["lineage"])
    passed("lineage")
    keyids, certificate = [key.keyid for key in signers], hashlib.sha256(envelope).hexdigest()
    return Verified(statement, keyids, trust is None, trusted, certificate, checkpoint)


def trusted_keys(folder: Path, trust: Path | Trust | None) -> Trust:
    """The keys to trust: the given ones, or those of the folder's own `trust.json`."""
    if isinstance(trust, Trust):
        return trust
    return load_given_trust(trust) if trust is not None else load_trust(folder / TRUST)


def _check_current(given: Trust, own: Trust) -> None:
    """The given `trust.json` is as new as the certified one: an older one knows no later revocation."""
    if given.version < own.version:
        versions = f"has version {given.version} and the release was made with version {own.version}"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"the given trust.json {versions}: {GET_CURRENT}")


def read_file(path: Path) -> bytes:
    """The content of a plain file; a link counts as missing."""
    try:
        if path.is_file() and not path.is_symlink():
            return path.read_bytes()
    except OSError as error:
        raise VerificationError(ExitCode.INCOMPLETE, f"{path.name} cannot be read ({error.strerror})") from error
    raise VerificationError(ExitCode.INCOMPLETE, f"{path.name} is missing")


def _check_files(folder: Path, listed: dict[str, str], count: int) -> None:
    """The folder holds exactly the listed files, byte for byte; `count` is the length of the list.

    It may lack the delta as a whole.
    """
    if not listed or len(listed) != count:
        raise VerificationError(ExitCode.MALFORMED, "the statement lists no file, or lists a file twice")
    try:
        present = set(list_paths(folder)) - UNBOUND
        if not any(path.startswith(DELTA_FOLDER) for path in present):  # it is only for those who have its base
            listed = {path: digest for path, digest in listed.items() if not path.startswith(DELTA_FOLDER)}
        for path in sorted(present ^ set(listed)):
            problem = "is missing" if path in listed else "is not in the certificate"
            raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{path} {problem}")
        for file in file_entries(folder, sorted(listed)):
            if file["sha256"] != listed[file["path"]]:
                reason = f"{file['path']} differs from the certified file"
                raise VerificationError(ExitCode.ARTEFACT_MISMATCH, reason)
    except NotPlain as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, str(error)) from error
    except OSError as error:
        name = Path(error.filename or folder).name
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{name} cannot be read ({error.strerror})") from error


def check_model_signature(path: Path, listed: dict[str, str], trust: Trust) -> Key:
    """The key that signed `model.sig`, after checking that it covers the same model files as the certificate.

    Compares digests only, so that no file is hashed twice.

    Raises:
        VerificationError: The file is missing, is not a bundle, has no trusted signer, or covers other files.
    """
    try:
        payload, key = open_bundle(read_file(path), trust.keys_for("release"))
        resources = json.loads(payload)["predicate"]["resources"]
    except NotAnEnvelope as error:
        raise VerificationError(ExitCode.MALFORMED, f"{path.name} is not a Model Signing bundle") from error
    except Untrusted as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"{path.name}: {error}") from error
    signed = {f"model/{r['name']}": r["digest"] for r in resources if r["algorithm"] == "sha256"}
    if signed != {name: digest for name, digest in listed.items() if name.startswith("model/")}:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{path.name} covers other model files")
    return key


def _read_proof(path: Path) -> Proof:
    data = read_file(path)
    try:
        return Proof.loads(data.decode())
    except (LogError, UnicodeDecodeError) as error:
        raise VerificationError(ExitCode.LOG_FAILURE, f"{path.name}: not a log proof") from error


def _check_log(proof: Proof, envelope: bytes, predicate: Predicate, trust: Trust) -> tuple[Checkpoint, LogEntry]:
    """The checkpoint whose tree holds the certificate, and the certificate's entry; the thresholds came before it."""
    checkpoint, entry = _check_proof(PROOF, proof, trust)
    digest = hashlib.sha256(envelope).hexdigest()
    if (entry["kind"], entry["certificate"], entry["overall"]) != ("job.certified", digest, "PASS"):
        raise VerificationError(ExitCode.LOG_FAILURE, "the log entry does not say that this certificate passed")
    if checkpoint.origin != predicate["log"]["origin"]:
        raise VerificationError(ExitCode.LOG_FAILURE, "the proof belongs to another log than the certificate names")
    before = Proof.loads(predicate["log"]["thresholds"])
    earlier, fixed = _check_proof("the proof of the thresholds", before, trust)
    if earlier.origin != checkpoint.origin or earlier.size > checkpoint.size or before.index >= proof.index:
        raise VerificationError(ExitCode.LOG_FAILURE, "the thresholds were not in the log before the certificate")
    if (fixed["kind"], fixed["job"]) != ("job.thresholds", entry["job"]):
        raise VerificationError(ExitCode.LOG_FAILURE, "the log entry does not hold the thresholds of this job")
    if predicate["log"]["before"] != fixed["before"] or fixed["before"]["size"] > before.index:
        reason = "the certificate and the log disagree about the size and root of the log before the run"
        raise VerificationError(ExitCode.LOG_FAILURE, reason)
    used: dict[Literal["thresholds", "parameters"], object] = {
        "thresholds": predicate["verification"]["thresholds"],
        "parameters": predicate["method"]["parameters"],
    }
    for name, value in used.items():
        if fixed[name] != hashlib.sha256(dumps(value)).hexdigest():
            reason = f"the {name} differ from those that were fixed before the run"
            raise VerificationError(ExitCode.POLICY_FAILURE, reason)
    return checkpoint, entry


def _check_proof(what: str, proof: Proof, trust: Trust) -> tuple[Checkpoint, LogEntry]:
    """The checkpoint and the entry of a valid log proof; `what` names the proof in error messages."""
    try:
        return proof.check(trust.log_keys), loads(proof.entry)
    except UnknownSigner as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"{what}: {error}") from error
    except (LogError, NotCanonical) as error:
        raise VerificationError(ExitCode.LOG_FAILURE, f"{what}: {error}") from error


def _check_times(
    trust: Trust, signers: Sequence[Key], release_key: Key, proof: Proof, logged_at: str, issued_at: str
) -> None:
    """The keys were valid, and as many as required, at the time of the log entry, which is close to the issue time.

    The log key signed a checkpoint at that time or later. So it need not have been in use before the entry; it must
    only not have been retired by then.
    """
    logged, issued = (dt.datetime.fromisoformat(time) for time in (logged_at, issued_at))
    if not -SKEW <= logged - issued <= LATEST:
        reason = "the issue time of the certificate is not close to the time of its log entry"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
    log_keys = [key for key in trust.keys_for("log").values() if _signed_checkpoint(key, proof)]
    invalid = [key for key in (*signers, release_key) if not key.valid_at(logged)]
    invalid += [key for key in log_keys if not key.not_retired_at(logged)]
    for key in invalid:
        reason = f"the {key.role} key was not valid when the certificate was logged"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
    require_signatures(trust, signers, logged)


def _signed_checkpoint(key: Key, proof: Proof) -> bool:
    """Whether this log key signed the proof's checkpoint."""
    try:
        proof.check(Trust([key], []).log_keys)
    except LogError:
        return False
    return True


def _check_parent(parent: Path | None, lineage: Lineage) -> None:
    """The given folder, if any, is the parent release that the lineage names."""
    if parent is None:
        return
    try:
        files = manifest_digest(manifest(parent))
    except (NotPlain, OSError) as error:
        reason = "broken lineage: the parent's folder cannot be read"
        raise VerificationError(ExitCode.POLICY_FAILURE, reason) from error
    certificate = parent / CERTIFICATE
    digest = hashlib.sha256(certificate.read_bytes()).hexdigest() if certificate.exists() else None
    if (files, digest) != (lineage["parent_manifest"], lineage["parent_certificate"]):
        raise VerificationError(
            ExitCode.POLICY_FAILURE, "broken lineage: the folder is not the release of the parent version"
        )
