"""The record itself: an in-toto Statement that binds files, parameters, thresholds and results.

It says what was done and what the tests gave, and nothing of what was submitted: no text, no token, no hash of
a text without its nonce, no name, no metric of a single request (whoever holds the weights could test guesses
against one).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from service.audit.canonical import dumps
from service.audit.manifest import FileEntry
from service.audit.schema import DIGEST, schema_problem
from service.audit.wording import problem_in
from service.domain.disclosure import FEWEST_SUBMITTERS, suppressed
from service.domain.json_types import JsonObject
from service.domain.report import Epoch, Findings, Means, ThresholdRow

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:unlearnd:record:v1"
TITLE = "Record of unlearning procedure and test results"
SCOPE = (
    "A procedure of approximate unlearning was run on the named parent model, and the named tests were run on "
    "exactly the files listed here. The tests bound greedy extraction of the submitted records; they say nothing "
    "of other ways to elicit them, of paraphrases, or of copies of the model made earlier."
)
MERGE = "W' = W + c (B A - B0 A0), in float32 from the parent's weights, rounded once to the storage dtype"
CRITERION = (
    "mean EL and mean MA over the forget set at or under the held-out means; each request's own means, and those of "
    "every earlier request still kept, at or under the held-out 95th percentiles; held-out perplexity ratio at or "
    "under the policy's maximum"
)
MANDATORY_ATTACKS = ("greedy extraction from every prefix (EL)", "token by token prediction (MA)")
OTHER_ATTACKS = (
    "int4 and int8 quantisation", "relearning on related text", "sampling several answers", "rephrased prompts",
)  # fmt: skip
NOT_MEMORISED = "not_memorised"  # the reason of a request that was not trained on
BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class WordingRefused(ValueError):
    """The record would say something it may not."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request in the record: its random ref, its commitment, what the tests said.

    `supplements` is the ref of an earlier request whose texts were submitted again.
    """

    ref: str
    commitment: bytes
    verdict: str
    reason: str | None
    supplements: str | None = None


def memorised_count(reasons: Iterable[str | None]) -> int:
    """How many requests the means are over: those that the model had memorised."""
    return sum(reason != NOT_MEMORISED for reason in reasons)


def decimal(value: float) -> str:
    """A number as a decimal string: JSON numbers do not survive every reader."""
    return f"{value:.6f}"


def decimals(values: JsonObject) -> JsonObject:
    """The same mapping with every float as a decimal string."""
    return {k: decimal(v) if isinstance(v, float) else v for k, v in values.items()}


def bucket(count: int) -> str:
    """A count as a range, so that it does not tell how much one person wrote."""
    above = next((b for b in BUCKETS if count <= b), None)
    return f"<= {above}" if above else f"> {BUCKETS[-1]}"


def statement(
    *,
    certificate_id: str,
    issuer: str,
    issued_at: datetime,
    lineage: JsonObject,
    log: JsonObject,
    files: Sequence[FileEntry],
    published: bool,
    forget_root: bytes,
    requests: Sequence[RequestLine],
    records: int,
    submitters: int,
    reference_texts: Sequence[JsonObject],
    parameters: JsonObject,
    findings: Findings,
    overall: str,
) -> bytes:
    """The canonical bytes of the statement.

    Args:
        certificate_id: Random.
        issuer: Who runs the service.
        issued_at: Now, UTC.
        lineage: model, version, parent version, parent manifest and certificate digests, the version superseded.
        log: origin, the checkpoint known before the run, the proof that the thresholds were there before.
        files: Every file the certificate is about, paths inside the release folder.
        published: Whether these files become a version.
        forget_root: Root over the requests' commitments.
        requests: One line a request.
        records: How many records; given as a range.
        submitters: How many distinct submitters the memorised requests came from; given as a range.
        reference_texts: role, sha256 and records of retain and held-out text.
        parameters: Everything the run was told.
        findings: What the tests found.
        overall: PASS or FAIL.

    Raises:
        WordingRefused: The certificate would say something it may not, or would not fit its schema.
    """
    memorised = memorised_count(r.reason for r in requests)
    predicate = {
        "title": TITLE,
        "schema": DIGEST,
        "certificate_id": certificate_id,
        "issuer": issuer,
        "issued_at": issued_at.isoformat(timespec="seconds"),
        "scope": SCOPE,
        "lineage": lineage,
        "log": log,
        "artefacts": {"merge": MERGE, "published": published, **asdict(findings.artefact)},
        "forget_set": {
            "commitment_root": forget_root.hex(),
            "requests": len(requests),
            "records": bucket(records),
            "submitters": bucket(submitters),
        },
        "requests": [_request(line) for line in sorted(requests, key=lambda line: line.ref)],
        "corpora": list(reference_texts),
        "method": {
            "name": "FILA + IHL on LoRA",
            "source": "Cha et al., ICLR 2025, arXiv 2408.06621",
            "parameters": recorded_parameters(parameters),
        },
        "verification": _verification(findings, requests, memorised, submitters),
        "training": {
            "epochs": findings.epochs,
            "seconds": decimals(findings.seconds),
            "trajectory": [_epoch(epoch, submitters) for epoch in findings.trajectory],
        },
        "environment": asdict(findings.environment),
        "overall": overall,
    }
    in_toto = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f["path"], "digest": {"sha256": f["sha256"]}} for f in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    wrong = problem_in(predicate) or schema_problem(in_toto)
    if wrong:
        raise WordingRefused(wrong)
    return dumps(in_toto)


def _request(line: RequestLine) -> JsonObject:
    return {**asdict(line), "commitment": line.commitment.hex()}


def _verification(findings: Findings, requests: Sequence[RequestLine], memorised: int, submitters: int) -> JsonObject:
    """What was tested, against which thresholds, with which results."""
    return {
        "criterion": CRITERION,
        "evaluated": "the files listed here, read back from disk",
        "thresholds": threshold_ranges(findings.thresholds),
        "limits": decimals(asdict(findings.limits)) if findings.limits else {},
        "before": _means(findings.before, submitters),
        "after": _means(findings.after, submitters),
        "suppressed_under": FEWEST_SUBMITTERS,
        "utility": decimals(asdict(findings.utility)) if findings.utility else None,
        "earlier": asdict(findings.earlier) if findings.earlier else None,
        "attacks": _attacks(requests, run=findings.after is not None or memorised == 0),
    }


def _means(means: Means | None, submitters: int) -> JsonObject | None:
    """Means as decimal strings, or suppressed."""
    return suppressed(decimals(asdict(means)), submitters) if means else None


def threshold_ranges(table: Sequence[ThresholdRow]) -> list[JsonObject]:
    """A table of thresholds as the certificate and, before the run, the log have it.

    There is one threshold for each length of a submitted text; lengths would tell how much a person wrote. So they go
    into ranges up to powers of two, and a range has the highest of each value (the lowest count and 1st percentile).
    """
    ranges: dict[int, list[JsonObject]] = {}
    for row in table:
        ranges.setdefault(1 << (row.length - 1).bit_length(), []).append(decimals(asdict(row)))
    lowest = ("count", "ma_p1")
    return [
        {
            name: f"<= {top}" if name == "length" else (min if name in lowest else max)(row[name] for row in rows)
            for name in rows[0]
        }
        for top, rows in sorted(ranges.items())
    ]


def recorded_parameters(policy: JsonObject) -> JsonObject:
    """A policy as the record and, before the run, the log have it."""
    return {k: str(v) if isinstance(v, float) else v for k, v in policy.items()}


def _attacks(requests: Sequence[RequestLine], *, run: bool) -> list[JsonObject]:
    """What was tried to get the texts back, and what was not; a result is over all requests."""
    passed = "PASS" if all(r.verdict == "PASS" for r in requests) else "FAIL"
    tried = {"status": "RUN", "result": passed} if run else {"status": "NOT_RUN", "result": None}
    tests = [{"name": name, **tried} for name in MANDATORY_ATTACKS]
    return tests + [{"name": name, "status": "NOT_RUN", "result": None} for name in OTHER_ATTACKS]


def _epoch(epoch: Epoch, submitters: int) -> JsonObject:
    """One epoch of the trajectory."""
    means = _means(Means(epoch.el, epoch.ma), submitters) or {}
    return {"epoch": epoch.epoch, **means, "heldout_perplexity": decimal(epoch.perplexity)}
