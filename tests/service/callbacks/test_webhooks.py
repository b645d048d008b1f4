"""Callbacks do not go to addresses inside the network."""

import httpcore
import pytest

from service.callbacks.webhooks import OutgoingCall, RefusedTarget, is_public_address, send

INSIDE = (
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "169.254.169.254",
    "fe80::1",
    "0.0.0.0",
    "::ffff:127.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "224.0.0.1",
    "fd00::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "::ffff:0:127.0.0.1",
    "::7f00:1",
    "fec0::1",
    "192.88.99.1",
)


@pytest.mark.parametrize("address", INSIDE)
def test_callbacks_do_not_go_inside(address, monkeypatch):
    """By address or by a name that resolves to it, also if only one of its addresses is inside."""
    assert not is_public_address(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), seconds=5, allow_private=False)
    answers = [(0, 0, 0, "", (resolved, 9)) for resolved in ("93.184.216.34", address)]

    async def resolve(*_, **__):
        return answers

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", "http://example.org:9/", {}, b"{}"), seconds=5, allow_private=False)


def test_an_allow_list_opens_a_network_and_nothing_else(monkeypatch):
    """What is on it is called, what is beside it is not."""
    called = []

    async def connect(_, host, *__):
        called.append(host)
        raise httpcore.ConnectError("nobody there")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    allowed = {"seconds": 5, "allow_private": False, "allow": ["10.2.0.0/16", "fd00::/8"]}
    for host in ("10.2.3.4", "[fd00::7]"):
        with pytest.raises(httpcore.ConnectError):
            send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), **allowed)
    for host in ("10.3.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(RefusedTarget):
            send(OutgoingCall("POST", f"http://{host}:9/", {}, b"{}"), **allowed)
    assert called == ["10.2.3.4", "fd00::7"]


def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch):
    """What was looked at is what is connected to: a second look-up, which would say something else, is not made."""
    asked, connected = [], []

    async def resolve(_, host, port, **__):
        asked.append(host)
        return [(0, 0, 0, "", ("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port))]

    async def connect(_, host, *__):
        connected.append(host)
        raise httpcore.ConnectError("no way out of here")

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(httpcore.ConnectError):
        send(OutgoingCall("POST", "http://rebind.example:9/", {}, b"{}"), seconds=5, allow_private=False)
    assert (asked, connected) == (["rebind.example"], ["93.184.216.34"])
