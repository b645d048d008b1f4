"""The record itself: an in-toto Statement that binds files, parameters, thresholds and results.

It says what was done and what the tests gave, and nothing of what was submitted: no text, no token, no hash of
a text without its nonce, no name, no metric of a single request (whoever holds the weights could test guesses
against one).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.audit.canonical import dumps
from service.audit.manifest import FileEntry
from service.audit.schema import DIGEST, schema_problem
from service.audit.wording import problem_in

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
FEWEST = 3  # means over fewer requests would be about a person: whoever has the weights could test guesses on them
SUPPRESSED = "suppressed"
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


def trained_on(reasons: Iterable[str | None]) -> int:
    """How many requests the means are over: those that the model had memorised."""
    return sum(reason != NOT_MEMORISED for reason in reasons)


def decimal(value: float) -> str:
    """A number as a decimal string: JSON numbers do not survive every reader."""
    return f"{value:.6f}"


def decimals(values: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with every float as a decimal string."""
    return {k: decimal(v) if isinstance(v, float) else v for k, v in values.items()}


def means(values: dict[str, Any] | None, requests: int) -> dict[str, Any] | None:
    """Means over so many requests as decimal strings; not told if those are too few."""
    if values is None:
        return None
    return decimals(values) if requests >= FEWEST else dict.fromkeys(values, SUPPRESSED)


def bucket(count: int) -> str:
    """A count as a range, so that it does not tell how much one person wrote."""
    above = next((b for b in BUCKETS if count <= b), None)
    return f"<= {above}" if above else f"> {BUCKETS[-1]}"


def statement(
    *,
    certificate_id: str,
    issuer: str,
    issued_at: datetime,
    lineage: dict[str, Any],
    log: dict[str, Any],
    files: Sequence[FileEntry],
    published: bool,
    forget_root: bytes,
    requests: Sequence[RequestLine],
    records: int,
    corpora: Sequence[dict[str, Any]],
    parameters: dict[str, Any],
    report: dict[str, Any],
    overall: str,
) -> bytes:
    """The canonical bytes of the statement.

    Args:
        certificate_id: Random.
        issuer: Who runs the service.
        issued_at: Now, UTC.
        lineage: model, version, parent version, parent manifest and certificate digests, the version superseded.
        log: origin, the checkpoint known before the run, the proof that the thresholds were there before.
        files: Every file the record is about, paths inside the release folder.
        published: Whether these files become a version.
        forget_root: Root over the requests' commitments.
        requests: One line a request.
        records: How many records, given as a range.
        corpora: role, sha256 and records of retain and held-out text.
        parameters: Everything the run was told.
        report: The engine's report without anything about a single request.
        overall: PASS or FAIL.

    Raises:
        WordingRefused: The record would say something it may not, or would not fit its schema.
    """
    trained = trained_on(r.reason for r in requests)
    predicate = {
        "title": TITLE,
        "schema": DIGEST,
        "certificate_id": certificate_id,
        "issuer": issuer,
        "issued_at": issued_at.isoformat(timespec="seconds"),
        "scope": SCOPE,
        "lineage": lineage,
        "log": log,
        "artefacts": {"merge": MERGE, "published": published, **report["artefact"]},
        "forget_set": {
            "commitment_root": forget_root.hex(), "requests": len(requests), "records": bucket(records),
        },
        "requests": [
            {
                "ref": r.ref, "commitment": r.commitment.hex(), "verdict": r.verdict, "reason": r.reason,
                "supplements": r.supplements,
            }
            for r in sorted(requests, key=lambda r: r.ref)
        ],
        "corpora": list(corpora),
        "method": {
            "name": "FILA + IHL on LoRA", "source": "Cha et al., ICLR 2025, arXiv 2408.06621",
            "parameters": parameters_of(parameters),
        },
        "verification": {
            "criterion": CRITERION,
            "evaluated": "the files listed here, read back from disk",
            "thresholds": thresholds_of(report["thresholds"]),
            "limits": decimals(report["limits"]),
            "before": means(report["before"], trained),
            "after": means(report["after"] or None, trained),
            "suppressed_under": FEWEST,
            "utility": decimals(report["utility"]) if report["utility"] else None,
            "earlier": report["earlier"],
            "attacks": _attacks(requests, run=bool(report["after"] or trained == 0)),
        },
        "training": {
            "epochs": report["epochs"], "seconds": decimals(report["seconds"]),
            "trajectory": [_epoch(entry, trained) for entry in report["trajectory"]],
        },
        "environment": report["environment"],
        "overall": overall,
    }  # fmt: skip
    found = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f["path"], "digest": {"sha256": f["sha256"]}} for f in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    wrong = problem_in(predicate) or schema_problem(found)
    if wrong:
        raise WordingRefused(wrong)
    return dumps(found)


def thresholds_of(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table of thresholds as the record and, before the run, the log have it.

    There is one threshold for each length of a submitted text; lengths would tell how much a person wrote. So they go
    into ranges up to powers of two, and a range has the highest of each value (the lowest count and 1st percentile).
    """
    ranges: dict[int, list[dict[str, Any]]] = {}
    for row in table:
        ranges.setdefault(1 << (row["length"] - 1).bit_length(), []).append(row)
    lowest = ("count", "ma_p1")
    return [
        {
            name: f"<= {top}" if name == "length" else (min if name in lowest else max)(row[name] for row in rows)
            for name in rows[0]
        }
        for top, rows in sorted((top, [decimals(row) for row in rows]) for top, rows in ranges.items())
    ]


def parameters_of(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy as the record and, before the run, the log have it."""
    return {k: str(v) if isinstance(v, float) else v for k, v in policy.items()}


def _attacks(requests: Sequence[RequestLine], *, run: bool) -> list[dict[str, Any]]:
    """What was tried to get the texts back, and what was not; a result is over all requests."""
    passed = "PASS" if all(r.verdict == "PASS" for r in requests) else "FAIL"
    tried = {"status": "RUN", "result": passed} if run else {"status": "NOT_RUN", "result": None}
    tests = [{"name": name, **tried} for name in MANDATORY_ATTACKS]
    return tests + [{"name": name, "status": "NOT_RUN", "result": None} for name in OTHER_ATTACKS]


def _epoch(entry: dict[str, Any], trained: int) -> dict[str, Any]:
    """One epoch of the trajectory; means as far as they may be told."""
    told = means({name: entry[name] for name in ("el", "ma")}, trained)
    return {"epoch": entry["epoch"], **(told or {}), "heldout_perplexity": decimal(entry["perplexity"])}
