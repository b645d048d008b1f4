"""The client's download of one file: in parts, resumed, from servers that know ranges or not."""

import hashlib
import re
import threading

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
    monkeypatch.setattr(download, "RETRY_SECONDS", 0)


class Server:
    """It answers ranges of a content, and breaks some answers off.

    Attributes:
        asked: The ranges that were asked for.
        sent: How many bytes it has sent.
        cuts: For each answer after how many bytes it breaks off; None does not.
        refusals: For each answer a status that it has instead; None has none.
        knows_ranges: Whether it sends a part alone.
        content: What it sends.
    """

    def __init__(self, cuts=(), refusals=(), *, knows_ranges=True, content=CONTENT) -> None:
        self.asked, self.sent, self.cuts, self.refusals = [], 0, iter(cuts), iter(refusals)
        self.knows_ranges, self.content, self._lock = knows_ranges, content, threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        first, last = map(int, re.findall(r"\d+", request.headers["range"]))
        with self._lock:
            self.asked.append((first, last))
            cut, refusal = next(self.cuts, None), next(self.refusals, None)
        if refusal:
            return httpx.Response(refusal, json={"title": "no", "detail": "not now", "code": "unavailable"})
        if not self.knows_ranges:
            return httpx.Response(200, content=self._stream(self.content, cut))
        headers = {"Content-Range": f"bytes {first}-{last}/{len(self.content)}"}
        return httpx.Response(206, headers=headers, content=self._stream(self.content[first : last + 1], cut))

    def _stream(self, body: bytes, cut: int | None):
        for start in range(0, len(body[:cut]), 7):
            piece = body[:cut][start : start + 7]
            self.sent += len(piece)
            yield piece
        if cut is not None:
            raise httpx.ReadError("cut")


def fetch(server, target, progress=lambda *_: None):
    """Whether the file arrived as it was published."""
    with httpx.Client(transport=httpx.MockTransport(server)) as http:
        return download_file(http, "http://service/", target, FILE, progress)


def test_a_file_arrives_in_parts(tmp_path):
    """Each is asked for once, and nothing is left beside the file."""
    seen, server = [], Server()
    assert fetch(server, tmp_path / "weights", lambda *progress: seen.append(progress))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert sorted(server.asked) == [(start, min(start + 100, 1004) - 1) for start in range(0, 1004, 100)]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("model/weights", 1004, 1004)


@pytest.mark.parametrize("cuts", [[], [49], [497]])
def test_a_server_that_knows_no_ranges_sends_the_file_once(tmp_path, cuts):
    """The other parts are given up, those that were asked for at the same time after a piece."""
    server, seen = Server(cuts, knows_ranges=False), []
    assert fetch(server, tmp_path / "weights", lambda *progress: seen.append(progress))
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert max(done for _, done, _ in seen) == len(CONTENT)
    assert server.sent <= len(CONTENT) + sum(cuts) + 3 * 7
    assert len(server.asked) <= 5


def test_a_part_that_breaks_off_goes_on_where_it_was_cut(tmp_path):
    """Only what is missing is asked for."""
    server = Server(cuts=[28])
    assert fetch(server, tmp_path / "weights")
    assert len(server.asked) == 12
    assert sum(last + 1 - first for first, last in server.asked) == len(CONTENT) + 100 - 28


@pytest.mark.parametrize("cut", [49, 497])
def test_a_server_that_knows_ranges_the_second_time_goes_on(tmp_path, cut):
    """A cache sends the whole file when it does not have it yet."""
    server = Server([cut], knows_ranges=False)

    def answer(request: httpx.Request) -> httpx.Response:
        sent = server(request)
        server.knows_ranges = True
        return sent

    assert fetch(answer, tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_slow_progress_is_progress(tmp_path):
    """However often a part breaks off, if something of it arrives each time."""
    assert fetch(Server(cuts=[14] * 200), tmp_path / "weights")


def test_a_list_that_nobody_can_read_is_thrown_away(tmp_path):
    """And so is what a killed process has left beside a whole file."""
    (tmp_path / "weights.part").write_bytes(b"?" * 1004)
    (tmp_path / "weights.parts").write_bytes(b"\xff\xfe")
    assert fetch(Server(), tmp_path / "weights")
    (tmp_path / "weights.parts").write_text(FILE["sha256"])
    assert fetch(Server(), tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_refusal_for_now_is_no_end(tmp_path):
    """Too many requests, a proxy without its server; any other refusal is one."""
    assert fetch(Server(refusals=[429, None, 503, 502]), tmp_path / "weights")
    with pytest.raises(ClientError, match="not now"):
        fetch(Server(refusals=[None, 403]), tmp_path / "others")


def test_what_has_arrived_is_kept_if_it_breaks_off_again_and_again(tmp_path):
    """The next call asks for the other parts."""
    with pytest.raises(ClientError, match="are kept"):
        fetch(Server(cuts=[None, None, *[0] * 99]), tmp_path / "weights")
    arrived = (tmp_path / "weights.parts").read_text().splitlines()[1:]
    server = Server()
    assert fetch(server, tmp_path / "weights")
    assert len(server.asked) == 11 - len(arrived)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_what_is_there_of_another_file_is_thrown_away(tmp_path):
    """Its parts are not taken for parts of this one."""
    other = {**FILE, "sha256": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(ClientError), httpx.Client(transport=httpx.MockTransport(Server([None] * 5 + [0] * 99))) as http:
        download_file(http, "http://service/", tmp_path / "weights", other, lambda *_: None)
    assert len(list(tmp_path.iterdir())) == 2
    server = Server()
    assert fetch(server, tmp_path / "weights")
    assert len(server.asked) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_another_part_than_the_one_asked_for_is_refused(tmp_path):
    """Whatever sits in between."""

    def confused(_: httpx.Request) -> httpx.Response:
        return httpx.Response(206, headers={"Content-Range": "bytes 1-99/1004"}, content=CONTENT[1:100])

    with pytest.raises(ClientError, match="another part"):
        fetch(confused, tmp_path / "weights")


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
