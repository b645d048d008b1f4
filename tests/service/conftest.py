"""What the offline checks are tested without."""

import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a socket or to look a name up fails."""

    def refuse(*_, **__):
        raise AssertionError("the verifier used the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
