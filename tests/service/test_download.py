"""The client's download of one file: in parts, resumed, from servers that know ranges or not."""

import hashlib
import itertools
import re

import httpx
import pytest

from service.client import download
from service.client.download import download_file
from service.domain.errors import ClientError

CONTENT = bytes(range(251)) * 4
FILE = {"path": "model/weights", "size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A hundred bytes a part, and no waiting."""
    monkeypatch.setattr(download, "PART_BYTES", 100)
    monkeypatch.setattr(download, "CHUNK_BYTES", 7)
    monkeypatch.setattr(download, "RETRY_SECONDS", 0)


class Server:
    """It answers ranges of CONTENT, and breaks some answers off.

    Attributes:
        asked: The ranges that were asked for.
        cuts: For each answer after how many bytes it breaks off; None does not.
        knows_ranges: Whether it sends a part alone.
        content: What it sends.
    """

    def __init__(self, cuts=(), *, knows_ranges=True, content=CONTENT) -> None:
        self.asked, self.cuts, self.knows_ranges, self.content = [], iter(cuts), knows_ranges, content

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        first, last = map(int, re.findall(r"\d+", request.headers.get("range", f"bytes=0-{len(self.content) - 1}")))
        self.asked.append((first, last))
        ranged = self.knows_ranges and "range" in request.headers
        body = self.content[first : last + 1] if ranged else self.content
        return httpx.Response(206 if ranged else 200, content=self._stream(body, next(self.cuts, None)))

    @staticmethod
    def _stream(body: bytes, cut: int | None):
        yield body[:cut]
        if cut is not None:
            raise httpx.ReadError("cut")


def fetch(server, target, progress=lambda *_: None):
    """Whether the file arrived as it was published."""
    with httpx.Client(transport=httpx.MockTransport(server)) as http:
        return download_file(http, "http://service/", target, FILE, progress)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_file_arrives_in_parts(tmp_path, knows_ranges):
    """A server that sends the whole file for each part serves as well; nothing is left beside the file."""
    seen = []
    server = Server(knows_ranges=knows_ranges)
    assert fetch(server, tmp_path / "weights", lambda *progress: seen.append(progress))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert sorted(server.asked) == [(start, min(start + 100, 1004) - 1) for start in range(0, 1004, 100)]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("model/weights", 1004, 1004)


def test_a_part_that_breaks_off_goes_on_where_it_was_cut(tmp_path):
    """Only what is missing is asked for."""
    server = Server(cuts=[28])
    assert fetch(server, tmp_path / "weights")
    assert len(server.asked) == 12
    assert sum(last + 1 - first for first, last in server.asked) == len(CONTENT) + 100 - 28


def test_what_has_arrived_is_kept_if_it_breaks_off_again_and_again(tmp_path):
    """The next call goes on from there."""
    with pytest.raises(ClientError, match="kept for next time"):
        fetch(Server(cuts=itertools.repeat(10)), tmp_path / "weights")
    arrived = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert arrived > 0
    server = Server()
    assert fetch(server, tmp_path / "weights")
    assert sum(last + 1 - first for first, last in server.asked) == len(CONTENT) - arrived


@pytest.mark.parametrize("size", [40, 100, 130, 200, 450, 1004])
def test_parts_that_were_being_joined_when_the_process_was_killed(tmp_path, size):
    """What the first part holds of a further part is not trusted; the parts that are left beside it go."""
    (tmp_path / "weights.part").write_bytes(CONTENT[: size // 100 * 100] + b"?" * (size % 100 if size > 100 else 0))
    for start in range(100, 1004, 100):
        (tmp_path / f"weights.part{start}").write_bytes(CONTENT[start : start + 100])
    server = Server()
    assert fetch(server, tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert sum(last + 1 - first for first, last in server.asked) <= 100


def test_a_wrong_file_leaves_nothing(tmp_path):
    """The caller may try again from the start."""
    assert not fetch(Server(content=bytes(len(CONTENT))), tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_an_empty_file_asks_for_nothing(tmp_path):
    """Its digest is that of no bytes."""
    empty = {"path": "model/empty", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    server = Server()
    with httpx.Client(transport=httpx.MockTransport(server)) as http:
        assert download_file(http, "http://service/", tmp_path / "empty", empty, lambda *_: None)
    assert (tmp_path / "empty").read_bytes() == b""
    assert not server.asked
