"""Clients of the HTTP API: `Client` for programs, `AsyncClient` for asyncio. The command line uses `Client`."""

from service.client.http import AsyncClient, Client
from service.domain.subject import Identity, Subject

__all__ = ["AsyncClient", "Client", "Identity", "Subject"]
