"""A batch of sixteen requests, three of them poisoned, through real training: thirteen complete."""

import pytest

from tests import support
from tests.e2e.conftest import ended

PEOPLE = support.people(13, seed=21)
CROWD = support.people(
    100, seed=61
)  # to forget so many at once costs 1.7 times the perplexity, the thirteen 1.13 times
RETAIN = support.people(12, seed=41)
POISONED = {
    "too_generic": ["has the number"],
    "too_long": [" ".join(support.people(280, seed=31))],
    "utility_budget_exceeded": CROWD,
}
POLICY = {
    **support.POLICY,
    "max_batch_records": 13 + 1 + 1 + len(CROWD),
    "max_wait_seconds": 30,
    "max_request_sequences": 110,
    "margin": 1.0,
    "max_perplexity_ratio": 1.4,
    "max_total_perplexity_ratio": 10,
    "adaptive": False,  # or the run goes on until it is within the budget
}


@pytest.mark.slow
def test_of_sixteen_requests_three_poisoned_ones_end_alone(stack, tmp_path_factory):
    """The thirteen people are forgotten, in four versions at most; each of the three ends with its own reason."""
    model, tokenizer = support.memorised_model([*PEOPLE, *RETAIN, *CROWD], steps=120)
    folder = tmp_path_factory.mktemp("poisoned")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    files = [
        folder / "model",
        support.write_texts(folder / "retain.jsonl", RETAIN),
        support.write_texts(folder / "heldout.jsonl", support.HELDOUT),
    ]
    stack.client.add_model("poisoned", *map(str, files), POLICY)
    bodies = [[text] for text in PEOPLE]
    for place, texts in zip((2, 9, 13), POISONED.values(), strict=True):
        bodies.insert(place, texts)
    sent = [stack.client.submit("poisoned", texts) for texts in bodies]
    ends = [ended(stack, request, 900) for request in sent]
    reasons = {reason: ends[bodies.index(texts)] for reason, texts in POISONED.items()}
    assert {reason: end["reason"] for reason, end in reasons.items()} == {reason: reason for reason in POISONED}
    others = [end for end in ends if end not in reasons.values()]
    assert [(end["status"], end["verdict"]) for end in others] == [("completed", "PASS")] * 13
    jobs = [job for job in stack.client.call("GET", "/v1/jobs?limit=50")["items"] if job["model"] == "poisoned"]
    assert len(jobs) <= 9  # one, and two for each halving of fourteen
    assert len({end["version"] for end in others}) <= 4
