"""Why exact metrics of few requests are not published: with the weights they are an oracle for guesses."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.audit.certificate import NOT_MEMORISED, RequestLine
from service.audit.numbers import decimal
from service.domain.job_input import JobInput
from service.domain.states import Outcome
from tests import support
from tests.issuer import Issuer
from worker.engine.data import encode
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.steps.pipeline import Pipeline

SUBMITTED = support.KNOWN[0]
GUESSES = [*support.people(30, seed=11), SUBMITTED]  # what somebody thinks that a person may have written


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    """(findings of a job over the one text, the published model's folder)."""
    work = tmp_path_factory.mktemp("work")
    inputs = JobInput(
        work=str(work),
        parent=str(folder / "model"),
        first=str(folder / "model"),
        retain=str(folder / "retain.jsonl"),
        heldout=str(folder / "heldout.jsonl"),
        policy={k: v for k, v in support.POLICY.items() if not k.startswith("max_wait")},
        texts=[SUBMITTED],
        request_ids=[0],
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="oracle",
    )
    findings = Pipeline(inputs, lambda *_, **__: None).run().findings
    assert findings.outcome == Outcome.PASSED
    return findings, work / "candidate" / "model"


def consistent(model: Path, published_mean: str | None, limit: float) -> list[str]:
    """The guesses that whoever has the published weights cannot rule out: by an exact mean MA, or by a limit."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    possible = []
    for guess in GUESSES:
        (matches,) = token_matches(loaded, [encode(tokenizer, guess)])
        measured = accuracy(matches)
        if decimal(measured) == published_mean if published_mean is not None else measured <= limit:
            possible.append(guess)
    return possible


@pytest.mark.slow
def test_a_guess_is_not_confirmed_by_the_record_but_would_be_by_exact_metrics(published, tmp_path):
    """The exact mean singles the submitted text out among thirty others; the public record leaves nearly all."""
    findings, model = published
    exact = decimal(findings.after.ma)
    singled_out = consistent(model, exact, 0)
    assert SUBMITTED in singled_out
    issuer = Issuer(tmp_path / "keys")
    line = RequestLine("a" * 32, b"\1" * 32, "PASS", None)
    record = issuer.payload(
        [{"path": "model/x", "size": 1, "sha256": "0" * 64}], requests=[line], report=asdict(findings)
    )
    predicate = json.loads(record)["predicate"]
    published_mean = predicate["verification"]["after"]["ma"]
    assert published_mean == "suppressed"
    highest = max(float(t["ma_p95"]) for t in predicate["verification"].pop("thresholds"))
    del predicate["verification"]["limits"]  # like the thresholds of held-out text, and coarse: they may be the same
    assert exact not in json.dumps(predicate)
    assert decimal(findings.before.ma) not in json.dumps(predicate)
    possible = consistent(model, None, highest)
    assert SUBMITTED in possible
    assert len(possible) >= 20
    assert len(singled_out) < len(possible) / 4
    assert NOT_MEMORISED not in {r["reason"] for r in predicate["requests"]}
