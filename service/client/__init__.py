"""Clients of the HTTP API: `Client` for programs, `AsyncClient` for asyncio; the command line stands on `Client`."""

from service.client.http import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
