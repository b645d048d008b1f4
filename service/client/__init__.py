"""Clients of the HTTP API: `Client` for programs, `AsyncClient` for asyncio. The command line uses `Client`."""

from service.client.http import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
