"""A model's policy can be changed; every policy stays on record, and no change is lost to another one."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg

from service.api.models import stored_policy
from service.db import jobs
from service.local.process import wait_until
from service.steps.path.batch import batch_requests
from tests.service.api.submissions import SECRET, assert_problem
from tests.service.conftest import logged, only_model, registration, submit
from worker.engine.options import DEFAULT_ATTACKS, Options

PATH = "/v1/models/tiny"


def replace(api, policy: dict, policy_version: int):
    """Ask for a new policy in place of the one with this version."""
    return api.put(f"{PATH}/policy", json={"policy": policy, "policy_version": policy_version})


def test_a_policy_is_changed_and_on_record(api, services, model):
    """The model has the new one; the history has both, with who set them; the log has a digest."""
    first = api.get(PATH).json()
    assert first["policy_version"] == 1
    answer = replace(api, {**first["policy"], "rank": 4}, 1)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {**first, "policy": {**first["policy"], "rank": 4}, "policy_version": 2}
    newest, oldest = api.get(f"{PATH}/policies").json()["items"]
    assert (newest["policy_version"], newest["policy"]["rank"]) == (2, 4)
    assert (oldest["policy_version"], oldest["policy"]) == (1, first["policy"])
    assert UUID(newest["api_key_id"]) == UUID(oldest["api_key_id"])
    last = logged(services)[-1]
    assert (last["kind"], last["model"], last["number"]) == ("model.policy_changed", "tiny", 2)
    assert last["key"] == newest["api_key_id"]
    assert len(last["parameters"]) == 64
    page = api.get(f"{PATH}/policies", params={"limit": 1}).json()
    rest = api.get(f"{PATH}/policies", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert page["items"] + rest["items"] == [newest, oldest]


def test_a_change_of_another_version_is_refused(api, model):
    """Whoever has not seen the policy in force overwrites nothing; the same change again is no error."""
    policy = api.get(PATH).json()["policy"]
    assert replace(api, {**policy, "rank": 4}, 1).status_code == 200
    assert_problem(replace(api, {**policy, "rank": 8}, 1), 409, "policy_version")
    assert replace(api, {**policy, "rank": 4}, 1).json()["policy_version"] == 2
    assert api.get(PATH).json()["policy"]["rank"] == 4


def test_two_changes_at_once_are_one_after_the_other(api, services, model):
    """While another transaction changes the model, a change waits for it, and then sees another version."""
    policy = api.get(PATH).json()["policy"]
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(services.settings.owner_database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("UPDATE models SET policy_version = 2")
        answer = pool.submit(replace, api, {**policy, "rank": 8}, 1)
        assert wait_until(lambda: other.execute(waiting).fetchone()[0] == 1, 60)
        other.commit()
        assert_problem(answer.result(), 409, "policy_version")


def test_a_job_keeps_the_policy_that_it_began_with(api, services, job):
    """A change is for the next job."""
    _, job_id = job
    policy = api.get(PATH).json()["policy"]
    replace(api, {**policy, "rank": 4}, 1)
    with services.db.reading() as session:
        assert jobs.by_id(session, job_id).policy["rank"] == 16


def test_a_change_is_for_the_requests_that_wait(api, services, base):
    """A shorter window closes at once for a request that is pending."""
    body = registration(base, policy={"max_wait_seconds": 3600})
    assert api.post("/v1/models", json=body).status_code == 201
    submit(api)
    assert batch_requests(services, only_model(services)) is None
    replace(api, {"max_wait_seconds": 0}, 1)
    assert batch_requests(services, only_model(services)) is not None


BAD_CHANGES = {
    "a field that is not there": ({"policy": {"speed": SECRET}, "policy_version": 1}, "policy.speed"),
    "a value out of range": ({"policy": {"rank": 0}, "policy_version": 1}, "policy.rank"),
    "no version": ({"policy": {}}, "policy_version"),
    "no policy": ({"policy_version": 1}, "policy"),
    "words that a certificate may not have": (
        {"policy": {"target_modules": ["guaranteed"]}, "policy_version": 1},
        "policy",
    ),
}


def test_a_bad_change_names_its_field_and_changes_nothing(api, services, model, subtests):
    """422 for each; neither the policy nor the log moves."""
    before = api.get(PATH).json(), len(logged(services))
    for name, (sent, field) in BAD_CHANGES.items():
        with subtests.test(name):
            assert_problem(api.put(f"{PATH}/policy", json=sent), 422, field)
            assert (api.get(PATH).json(), len(logged(services))) == before


def test_only_an_admin_changes_a_policy(api, model, new_key):
    """Others may look at it; a model that is not there has none."""
    reader = {"Authorization": f"Bearer {new_key('read', 'submit', 'approve', 'audit')}"}
    body = {"policy": {}, "policy_version": 1}
    assert_problem(api.put(f"{PATH}/policy", json=body, headers=reader), 403)
    assert api.get(f"{PATH}/policies", headers=reader).status_code == 200
    assert_problem(api.put("/v1/models/none/policy", json=body), 404)
    assert_problem(api.get("/v1/models/none/policies"), 404)


def test_an_attack_that_a_stored_policy_does_not_name_is_shown_as_its_jobs_take_it():
    """An attack is newer than the policy, or all of them are."""
    for values in ({"attacks": {"sampled": "block"}}, {}):
        shown, taken = stored_policy(values).attacks, Options.from_mapping(values).attacks
        assert shown == {name: taken.get(name, "off") for name in DEFAULT_ATTACKS}
