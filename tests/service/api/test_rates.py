"""How often a key may ask."""

import time
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from service.api import rates
from service.api.rates import RateLimiter
from service.domain.errors import RateLimited
from service.local.process import wait_until
from service.main import create_app


@pytest.fixture(autouse=True)
def one_minute(monkeypatch):
    """No minute ends in the middle of a test."""
    begun = time.time() // 60 * 60 + 20
    monkeypatch.setattr(rates.time, "time", lambda: begun)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(services, new_key):
    """Another key, and OpenDSR, are not counted with it."""
    services.settings = services.settings.model_copy(update={"requests_per_minute": 5})
    first, second = ({"Authorization": f"Bearer {new_key('read')}"} for _ in range(2))
    with TestClient(create_app(services)) as client:
        codes = [client.get("/v1/jobs", headers=first).status_code for _ in range(8)]
        assert codes == [200] * 5 + [429] * 3
        refused = client.get("/v1/jobs", headers=first)
        assert refused.headers["retry-after"] == "40"
        assert refused.headers["ratelimit"] == '"key";r=0;t=40'
        assert refused.json()["code"] == "too_many"
        assert client.get("/v1/jobs", headers=second).status_code == 200
        unknown = "/v2/requests/6f5ca2b0-3d3e-4f5c-9d6e-0b7a3c1d2e3f"
        assert [client.get(unknown, headers=first).status_code for _ in range(8)] == [404] * 8


def test_a_key_has_one_limit_over_all_processes(services, new_key, monkeypatch):
    """What one process admits counts in the others within a second, and nobody waits for the broker."""
    monkeypatch.setattr(rates, "EXCHANGE_SECONDS", 0.01)
    services.settings = services.settings.model_copy(update={"requests_per_minute": 10})
    key = {"Authorization": f"Bearer {new_key('read')}"}
    with TestClient(create_app(services)) as one, TestClient(create_app(services)) as other:
        assert [client.get("/v1/jobs", headers=key).status_code for client in [one] * 4 + [other]] == [200] * 5
        counted = other.app.state.rate_limiter._others
        assert wait_until(lambda: sum(counted.values()) == 4, 10)
        assert [other.get("/v1/jobs", headers=key).status_code for _ in range(7)] == [200] * 5 + [429] * 2


@pytest.fixture
def key() -> str:
    """A key that no other test counts at the same broker."""
    return uuid4().hex


def test_counts_are_added_once_and_end_with_their_minute(services, monkeypatch, key):
    """Each process learns the sum of the others; a new minute begins with nothing."""
    one, other = (RateLimiter(5, services.settings.broker_url) for _ in range(2))
    for limiter in (one, other, one, one):
        limiter.count(key, "/")
        one.exchange()
        other.exchange()
    one.count(key, "/")
    for limiter in (one, other):
        limiter.exchange()
    with pytest.raises(RateLimited):
        other.count(key, "/")
    other.count("b", "/")
    later = time.time() + 60
    monkeypatch.setattr(rates.time, "time", lambda: later)
    other.count(key, "/")
    one.exchange()
    other.exchange()
    assert (one._others[key], other._others[key]) == (0, 0)


def test_an_answer_that_was_lost_counts_nothing_twice(services, monkeypatch, key):
    """What was written and not confirmed is written again, and is the same."""
    one, other = (RateLimiter(5, services.settings.broker_url) for _ in range(2))
    for limiter in (one, one, other):
        limiter.count(key, "/")
    connected = one._connected()
    pipeline = connected.pipeline(transaction=False)
    with monkeypatch.context() as lost:
        lost.setattr(connected, "pipeline", lambda **_: pipeline)
        execute = pipeline.execute
        lost.setattr(pipeline, "execute", lambda: [execute(), 1 / 0])
        with pytest.raises(ZeroDivisionError):
            one.exchange()
    for limiter in (one, other, one):
        limiter.exchange()
    assert (one._others[key], other._others[key]) == (1, 2)


def test_without_the_broker_each_process_limits_alone(tmp_path):
    """Requests do not fail for it, and a broker of another kind is not asked."""
    limiter = RateLimiter(2, f"redis+socket://{tmp_path}/nobody.sock")
    for _ in range(2):
        limiter.count("a", "/")
        with pytest.raises(Exception, match=r"nobody\.sock"):
            limiter.exchange()
    with pytest.raises(RateLimited):
        limiter.count("a", "/")
    RateLimiter(2, "memory://").count("a", "/")
