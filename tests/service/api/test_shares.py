"""Shares of connections, requests and memory, and turns."""

import asyncio

import pytest

from service.api.shares import Shares, Turns, peer_name


def test_nobody_gets_more_than_a_share_and_all_no_more_than_the_total():
    """What is refused is not counted, and what is given back is free again."""
    shares = Shares(10, 4)
    assert shares.take("a", 4)
    assert not shares.take("a")
    assert shares.take("b", 4)
    assert not shares.take("c", 3)
    assert shares.take("c", 2)
    assert not shares.take("d")
    shares.give_back("a", 3)
    assert shares.take("d", 3)
    assert not shares.take("proxy", is_limited=False)
    shares.give_back("b", 4)
    shares.give_back("c", 2)
    assert shares.take("proxy", 6, is_limited=False)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::8", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_an_address_stands_for_whoever_has_it(address, name):
    """An IPv6 address stands for its /64, any address of which the same client may take."""
    assert peer_name(address) == name


def test_a_holder_waits_for_its_turn_and_others_do_not():
    """Two at once of each holder; the third starts when one of its holder's has ended."""

    async def run() -> list[str]:
        turns, started, end = Turns(2), [], asyncio.Event()

        async def work(holder: str) -> None:
            async with turns.turn(holder):
                started.append(holder)
                await end.wait()

        tasks = [asyncio.create_task(work(holder)) for holder in "aaab"]
        while len(started) < 3:
            await asyncio.sleep(0)
        before = sorted(started)
        end.set()
        await asyncio.gather(*tasks)
        assert sorted(started) == list("aaab")
        return before

    assert asyncio.run(run()) == list("aab")
