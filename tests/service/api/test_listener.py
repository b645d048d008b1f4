"""The listening connection of a process: whatever is notified, it goes on."""

import asyncio
from uuid import uuid4

import psycopg

from service.api.listener import Listener
from service.db.job_events import CHANNEL


def test_a_notification_that_names_no_job_does_not_end_the_listening(database_url):
    """Every login may notify, with any payload; the next notification of a job wakes its stream all the same."""
    job_id = uuid4()

    async def woken() -> None:
        listener = Listener(database_url)
        listening = asyncio.create_task(listener.run())
        stream = listener.subscribe(job_id, float("inf"))
        await anext(stream)
        event = next(iter(listener._waiters[job_id]))
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            while not event.is_set() and not listening.done():
                for payload in ("no job", "", str(job_id)):
                    await connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
                await asyncio.wait([listening, asyncio.create_task(event.wait())], timeout=0.1)
        assert not listening.done(), listening.exception()
        assert event.is_set()
        listening.cancel()
        await stream.aclose()

    asyncio.run(asyncio.wait_for(woken(), 60))
