"""The certificate: an in-toto Statement that binds files, parameters, thresholds and results.

A certificate states the procedure and the test results. It holds nothing that was submitted: no text, no token, no
hash of a text without its nonce, and no name. It also holds no metric of a single request, because whoever has the
weights could test guesses against such a number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from service.audit.canonical import dumps
from service.audit.manifest import FileEntry
from service.audit.numbers import (
    certified_attacks,
    certified_copies,
    certified_limits,
    certified_means,
    certified_training,
    certified_utility,
    threshold_ranges,
)
from service.audit.predicate import (
    Artefacts,
    Attack,
    CertifiedEnvironment,
    CertifiedProbes,
    CertifiedRequest,
    CertifiedTexts,
    ForgetSet,
    Lineage,
    LogReference,
    Predicate,
    Statement,
    Verification,
)
from service.audit.schema import DIGEST, schema_problem
from service.audit.wording import problem_in
from service.domain.disclosure import FEWEST_SUBMITTERS, LIMIT_STEP, MEAN_STEP, Contributors, count_range, prompt_range
from service.domain.json_types import Json, JsonObject
from service.domain.reference_texts import Overlap
from service.domain.report import Artefact, Environment, Findings, ProbeCounts

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:unlearnd:record:v1"
TITLE = "Record of unlearning procedure and test results"
SCOPE = (
    "A procedure of approximate unlearning was run on the named parent model, and the named tests were run on "
    "exactly the files listed here. The tests bound greedy extraction of the submitted records. An attack that is "
    "listed as run compares those that the parent had memorised with text that the model never saw, at the level "
    "stated there. Nothing is said of attacks that were not run, of paraphrases, or of earlier copies of the model."
)
METHODS = {"distil": "distillation from a reference not clearly better on the records than on unseen text, on LoRA"}
HELD = ", held near the parent on retain text and on samples of the parent"
MERGE = "W' = W + B' A', with factors of c (B A - B0 A0) in float32 or bfloat16; the exact sum, rounded"
CRITERION = (
    "mean EL and mean MA over the forget set at or under the held-out means; the means of each request, and of every "
    "earlier one still kept, at or under the held-out 95th percentiles (beyond the stated number a lower bound of "
    "EL); held-out perplexity, relative to the parent and to version 0, at or under the policy's maxima; MA and "
    "log-likelihood of what is most like the records, or the probes with their secrets, in the retain text and in "
    "each listed set of neighbours, no more than the policy's limit lower; no probe (a prompt given by a submitter or "
    "made of a record) brings out its secret, greedily or in samples; no attack with the effect block succeeds, or is "
    f"left out. Here means are rounded down to a multiple of {MEAN_STEP}, limits to a multiple of {LIMIT_STEP}"
)
MANDATORY_ATTACKS = ("greedy extraction from every prefix (EL)", "token by token prediction (MA)")
NOT_PUBLISHED = "NOT_PUBLISHED"  # the verdict of a request that passed its own tests in a run that published nothing
NOT_MEMORISED = "not_memorised"  # the reason code of a request that the model had not memorised; training leaves it out


class WordingRefused(ValueError):
    """The certificate would make a forbidden claim or would not fit its schema."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request in the certificate.

    Attributes:
        ref: The request's random reference.
        commitment: The commitment to its records.
        verdict: The result of its tests.
        reason: Why it has this verdict, a code.
        supplements: The ref of an earlier request whose texts were submitted again.
    """

    ref: str
    commitment: bytes
    verdict: str
    reason: str | None
    supplements: str | None = None


def memorised_count(reasons: Iterable[str | None]) -> int:
    """How many requests the model had memorised; the means are over these."""
    return sum(reason != NOT_MEMORISED for reason in reasons)


def statement(
    *,
    certificate_id: str,
    issuer: str,
    issued_at: datetime,
    lineage: Lineage,
    log: LogReference,
    files: Sequence[FileEntry],
    published: bool,
    forget_root: bytes,
    requests: Sequence[RequestLine],
    records: int,
    contributors: Contributors,
    reference_texts: Sequence[CertifiedTexts],
    heldout_overlap: Overlap | None,
    parameters: JsonObject,
    findings: Findings,
    overall: str,
    base: str | None = None,
) -> bytes:
    """The canonical bytes of the statement.

    Args:
        certificate_id: A random id.
        issuer: The name of the operator of the service.
        issued_at: The current time, UTC.
        lineage: model, version, parent version, parent manifest and certificate digests, the version superseded.
        log: origin, the checkpoint before the run, and the proof that the log held the thresholds before the run.
        files: Every file that the certificate covers; paths are relative to the release folder.
        published: Whether these files become a version.
        forget_root: Merkle root over the requests' commitments.
        requests: One line for each request.
        records: The number of submitted records, without those that a search found; the statement gives a range.
        contributors: Whose texts the means are over; the statement gives the number of submitters as a range.
        reference_texts: role, sha256 and records of the retain and held-out texts, and of each set of neighbours.
        heldout_overlap: How many held-out texts are also retain texts; None if nobody has counted them.
        parameters: All parameters of the run.
        findings: The test results.
        overall: PASS or FAIL.
        base: The digest of the folder of the model that the registered one was fine-tuned from; None without one.

    Raises:
        WordingRefused: The certificate would make a forbidden claim or would not fit its schema.
    """
    predicate: Predicate = {
        "title": TITLE,
        "schema": DIGEST,
        "certificate_id": certificate_id,
        "issuer": issuer,
        "issued_at": issued_at.isoformat(timespec="seconds"),
        "scope": SCOPE,
        "lineage": lineage,
        "log": log,
        "artefacts": _artefacts(findings.artefact, published=published),
        "forget_set": _forget_set(forget_root, requests, records, contributors.submitters or 0),
        "requests": [_request(line) for line in sorted(requests, key=lambda line: line.ref)],
        "corpora": list(reference_texts),
        "method": {
            "name": method_name(parameters),
            "source": "Cha et al., ICLR 2025, arXiv 2408.06621",
            "reference": findings.reference,
            "base": base if findings.reference == "base" else None,
            "parameters": certified_parameters(parameters),
        },
        "verification": _verification(findings, requests, contributors, heldout_overlap, parameters),
        "training": certified_training(findings, contributors),
        "environment": _environment(findings.environment),
        "overall": overall,
    }
    return _checked_bytes(_in_toto(files, predicate))


def _in_toto(files: Sequence[FileEntry], predicate: Predicate) -> Statement:
    """The in-toto Statement: the files are its subject."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file["path"], "digest": {"sha256": file["sha256"]}} for file in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _checked_bytes(in_toto: Statement) -> bytes:
    """The canonical bytes of a statement whose wording is allowed and that fits the schema.

    Raises:
        WordingRefused: The statement makes a forbidden claim or does not fit its schema.
    """
    problem = problem_in(in_toto["predicate"]) or schema_problem(in_toto)
    if problem:
        raise WordingRefused(problem)
    return dumps(in_toto)


def _forget_set(root: bytes, requests: Sequence[RequestLine], records: int, submitters: int) -> ForgetSet:
    """The size of the forget set, in ranges, and the commitment to it."""
    return {
        "commitment_root": root.hex(),
        "requests": len(requests),
        "records": count_range(records),
        "submitters": count_range(submitters),
    }


def _artefacts(artefact: Artefact, *, published: bool) -> Artefacts:
    return {
        "merge": MERGE,
        "published": published,
        "sequence_length": artefact.sequence_length,
        "weights_dtype": artefact.weights_dtype,
        "evaluated_dtype": artefact.evaluated_dtype,
        "adapter_sha256": artefact.adapter_sha256,
    }


def _environment(environment: Environment) -> CertifiedEnvironment:
    return {
        "device": environment.device,
        "python": environment.python,
        "packages": environment.packages,
        "installed": environment.installed,
        "code": environment.code,
    }


def _request(line: RequestLine) -> CertifiedRequest:
    return {
        "ref": line.ref,
        "commitment": line.commitment.hex(),
        "verdict": line.verdict,
        "reason": line.reason,
        "supplements": line.supplements,
    }


def _verification(
    findings: Findings,
    requests: Sequence[RequestLine],
    contributors: Contributors,
    heldout_overlap: Overlap | None,
    parameters: JsonObject,
) -> Verification:
    """The tests, their thresholds and their results."""
    memorised = memorised_count(line.reason for line in requests)
    return {
        "criterion": CRITERION,
        "evaluated": "the files listed here, read back from disk",
        "thresholds": threshold_ranges(findings.thresholds),
        "limits": certified_limits(findings.limits),
        "before": certified_means(findings.before, contributors) if findings.before else None,
        "after": certified_means(findings.after, contributors) if findings.after else None,
        "suppressed_under": FEWEST_SUBMITTERS,
        "heldout_overlap": heldout_overlap,
        "utility": certified_utility(findings.utility) if findings.utility else None,
        "earlier": findings.earlier and {**asdict(findings.earlier), "exact": findings.earlier.in_full},  # type: ignore[typeddict-item]  # its fields are these
        "probes": _probes(findings.probes),
        "attacks": [
            *_mandatory_attacks(findings.reason, run=findings.after is not None or memorised == 0),
            *certified_attacks(findings, parameters, contributors),
        ],
        "quantised": certified_copies(findings, parameters),
    }


def _probes(probes: ProbeCounts | None) -> CertifiedProbes | None:
    if probes is None:
        return None
    return {
        "asked": prompt_range(probes.asked),
        "samples": probes.samples,
        "answered_before": prompt_range(probes.answered_before),
        "answered_after": prompt_range(probes.answered_after),
    }


def certified_parameters(policy: JsonObject) -> JsonObject:
    """The policy in the form that the log holds before the run and the certificate holds after it.

    Numbers are strings, and a mapping is a list of `name=value`.
    """
    return {name: _parameter(value) for name, value in policy.items()}


def method_name(parameters: JsonObject) -> str:
    """The name of the method, from the policy's loss and initialisation."""
    loss = str(parameters.get("loss", "ihl"))
    name = METHODS.get(loss, f"{loss.upper()} on LoRA")
    name += HELD if loss == "ihl" and parameters.get("adaptive") is True else ""
    return f"FILA + {name}" if parameters.get("init", "fila") == "fila" and loss != "distil" else name


def _parameter(value: Json) -> Json:
    if isinstance(value, Mapping):
        return [f"{name}={member}" for name, member in sorted(value.items())]
    return str(value) if isinstance(value, float) else value


def _mandatory_attacks(reason: str | None, *, run: bool) -> list[Attack]:
    """The attacks of the criterion; one result covers all requests of the job. No other reason hides a missed one."""
    held = reason != "criterion_missed"
    result = "PASS" if held else "FAIL"
    status, outcome, passed = ("RUN", result, held) if run else ("NOT_RUN", None, None)
    return [{"name": name, "status": status, "result": outcome, "passed": passed} for name in MANDATORY_ATTACKS]
