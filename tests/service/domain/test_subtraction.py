"""Two of three submitters subtract their own numbers from everything that the service shows."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.disclosure import LARGEST_SHARE, MEAN_STEP, Contributors, disclosed, is_disclosed
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch
from tests.service.conftest import only_model, submit
from tests.service.jobs import EPOCH, REPORT, claim, expire, release_folder, to_certify

# When, and which: the first two submitters' own numbers, which they know from the weights, and the third's.
MEASURED = {
    ("before", "ma"): (0.9137, 0.8741, 0.9683),
    ("before", "el"): (0.7312, 0.8129, 0.6977),
    ("after", "ma"): (0.3102, 0.2911, 0.3466),
    ("epoch", "ma"): (0.5127, 0.4791, 0.6154),
}
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")
TIME = re.compile(r"\d\d:\d\d:\d\d\.\d+")  # its seconds are chance, not a metric
USEFUL = 0.03  # to know somebody's MA this well is to tell guesses apart


def mean(when: str, name: str) -> float:
    """What the job measured."""
    values = MEASURED.get((when, name), (0.0, 0.0, 0.0))
    return sum(values) / len(values)


def nearest(text: str, known: tuple[float, ...], secret: float) -> float:
    """How close the best subtraction comes: every number of `text` is taken for the mean."""
    guesses = [float(number) * (len(known) + 1) - sum(known) for number in NUMBER.findall(TIME.sub("", text))]
    return min((abs(guess - secret) for guess in guesses), default=1.0)


def report_of_three(sequences: dict[int, int]) -> dict:
    """The report of a job of three requests with those means."""
    measured = {when: {name: mean(when, name) for name in ("el", "ma")} for when in ("before", "after")}
    trajectory = [{"epoch": 1, "el": 0.3, "ma": mean("epoch", "ma"), "perplexity": 9.1}]
    verdicts = {str(i): "PASS" for i in range(3)}
    changes = {"verdicts": verdicts, "memorised": [0, 1, 2], "trajectory": trajectory, "sequences": sequences}
    return {**REPORT, **measured, **changes}


def published_job(api, services, new_key, sequences) -> tuple[str, dict[str, str]]:
    """(job id, headers of the first submitter, who may also read) of a version with a request of each of three."""
    keys = [new_key("submit", "read", "download"), new_key("submit"), new_key("submit")]
    for key in keys:
        submit(api, headers={"Authorization": f"Bearer {key}"})
    job_id = batch_requests(services, only_model(services))
    fence = claim(services, job_id)
    store_epoch(services, job_id, fence, {**EPOCH, "ma": mean("epoch", "ma")})
    expire(services, job_id)
    to_certify(services, job_id, report_of_three(sequences))
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)
    return str(job_id), {"Authorization": f"Bearer {keys[0]}"}


def surfaces(api, services, job_id: str, headers: dict[str, str]) -> dict[str, str]:
    """Everything that shows a metric of the job to a submitter who may read, and to the public."""
    version = "/v1/models/tiny/versions/1"
    paths = ["/v1/jobs", *(f"/v1/jobs/{job_id}{part}" for part in ("", "/history", "/events", "/certificate?as=html"))]
    paths += [version, "/v1/models/tiny/versions", f"{version}/certificate?as=markdown", "/v1/log/entries"]
    shown = {path: api.get(path, headers=headers).text for path in paths}
    card = (release_folder(api, services) / "model" / "README.md").read_text()
    metrics = api.get("/metrics", headers={}).text.splitlines()
    of_jobs = [line for line in metrics if not line.startswith("unlearnd_http_")]  # the others are times of answers
    return {**shown, "/metrics": "\n".join(of_jobs), "card": card}


@pytest.mark.parametrize("sequences", [{0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 3}], ids=["equal", "mostly of one"])
def test_two_of_three_submitters_learn_little_of_the_third(api, services, model, new_key, sequences):
    """No number that is shown anywhere, less the two's own numbers, is useful; means of mostly one are not shown."""
    job_id, headers = published_job(api, services, new_key, sequences)
    shown = surfaces(api, services, job_id, headers)
    for (when, name), values in MEASURED.items():
        for place, text in shown.items():
            assert nearest(text, values[:2], values[2]) > USEFUL, (place, when, name)
    coarse = '"before":{"el":0.7,"ma":0.9}'
    assert (coarse in shown[f"/v1/jobs/{job_id}"]) == (set(sequences.values()) == {1})
    exact = api.get(f"/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {new_key('audit')}"}).text
    assert nearest(exact, MEASURED["before", "ma"][:2], MEASURED["before", "ma"][2]) < 1e-9  # the attack works


unit = st.floats(0, 1)


@given(st.lists(st.tuples(st.integers(1, 9), unit), min_size=3, max_size=6), unit)
def test_all_others_together_learn_one_to_within_a_tenth(submitters, position):
    """Whatever the others know of themselves, an interval of at least 0.1 of the last one's mean looks the same."""
    counts = [count for count, _ in submitters]
    contributors = Contributors.count(enumerate(counts))
    if not is_disclosed(contributors):
        assert max(counts) / sum(counts) > LARGEST_SHARE
        return

    def shown(own: float) -> object:
        total = sum(count * value for count, value in submitters[:-1]) + counts[-1] * own
        return disclosed({"ma": total / sum(counts)}, contributors)["ma"]

    share, others = counts[-1] / sum(counts), sum(count * value for count, value in submitters[:-1]) / sum(counts)
    cell = shown(submitters[-1][1])
    assert isinstance(cell, float)
    lowest, width = (cell - others) / share, float(MEAN_STEP) / share
    assert width >= 0.1 - 1e-12
    assert shown(lowest + width * (0.001 + 0.998 * position)) == cell
