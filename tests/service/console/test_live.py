"""Parts of pages that are made once for many viewers."""

import asyncio

import pytest

from service.console import live
from service.console.words import marked


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """No test waits for a whole second."""
    monkeypatch.setattr(live, "SECONDS", 0.05)


def test_many_viewers_cost_one_making():
    """Who comes while it is being made gets the next one, which knows what happened since."""

    async def watch() -> tuple[list[str | None], str | None, int]:
        parts, made, going_on = live.LiveParts(), [], asyncio.Event()

        async def make() -> str:
            made.append(len(made))
            await going_on.wait()
            return f"part {made[-1]}"

        viewers = [asyncio.create_task(parts.next("job", make)) for _ in range(200)]
        while not made:
            await asyncio.sleep(0)
        late = asyncio.create_task(parts.next("job", make))
        await asyncio.sleep(0)
        going_on.set()
        return await asyncio.gather(*viewers), await late, len(made)

    shown, late, made = asyncio.run(watch())
    assert (set(shown), late, made) == ({"part 0"}, "part 1", 2)


def test_a_viewer_who_leaves_takes_nothing_from_the_others():
    """Nor does an error of one making end the next."""

    async def watch() -> tuple[str | None, str]:
        parts = live.LiveParts()

        async def make() -> str:
            return "a part"

        async def fail() -> str:
            raise ValueError("away")

        leaving, staying = (asyncio.create_task(parts.next("job", make)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        shown = await staying
        with pytest.raises(ValueError, match="away"):
            await parts.next("job", fail)
        return shown, str(await parts.next("job", make))

    assert asyncio.run(watch()) == ("a part", "a part")


def test_nothing_is_kept_of_what_nobody_watches():
    """However many jobs were watched once."""

    async def watch() -> int:
        parts = live.LiveParts()

        async def make() -> None:
            return None

        await asyncio.gather(*(parts.next(number, make) for number in range(50)))
        await asyncio.sleep(3 * live.SECONDS)
        return len(parts._made_at) + len(parts._planned)

    assert asyncio.run(watch()) == 0


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("Straße of Jane <b>", ["Jane"], "Straße of <mark>Jane</mark> &lt;b&gt;"),
        ("Jane, Jane", ["Jane"], "<mark>Jane</mark>, <mark>Jane</mark>"),
        ("nobody", [], "nobody"),
    ],
)
def test_words_are_marked_where_they_stand(text, words, shown):
    """And what is shown is never markup of the text."""
    assert marked(text, words) == shown
