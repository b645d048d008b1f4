"""Logs are rotated by size while a process appends to them."""

import shutil
from collections import namedtuple

import pytest

from service.local.logs import last_line, rotate


def test_a_large_log_is_moved_and_the_process_goes_on(tmp_path):
    """Its content is in LOG.1, and what the process writes next is in the log."""
    log = tmp_path / "api.log"
    with log.open("ab", buffering=0) as process:
        process.write(b"old\n" * 10)
        assert rotate(log, max_bytes=20, kept=2)
        process.write(b"new\n")
    assert log.read_text() == "new\n"
    assert (tmp_path / "api.log.1").read_text() == "old\n" * 10


def test_a_few_earlier_logs_are_kept(tmp_path):
    """The oldest goes, so that the disk does not fill."""
    log = tmp_path / "api.log"
    for number in range(5):
        log.write_text(f"{number}" * 10)
        assert rotate(log, max_bytes=5, kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["api.log", "api.log.1", "api.log.2"]
    assert (tmp_path / "api.log.1").read_text() == "4" * 10
    assert (tmp_path / "api.log.2").read_text() == "3" * 10


def test_with_none_kept_a_large_log_is_emptied(tmp_path):
    """The folder has one file."""
    (tmp_path / "api.log").write_text("x" * 10)
    assert rotate(tmp_path / "api.log", max_bytes=5, kept=0)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


@pytest.mark.parametrize("max_bytes", [0, 10])
def test_a_small_log_stays(tmp_path, max_bytes):
    """And 0 switches rotation off; a log that is not there yet is none."""
    (tmp_path / "api.log").write_text("x" * 10)
    assert not rotate(tmp_path / "api.log", max_bytes=max_bytes, kept=2)
    assert not rotate(tmp_path / "none.log", max_bytes=max_bytes, kept=2)
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]


def test_on_a_full_disk_everything_stays(tmp_path, monkeypatch):
    """No line is lost, and no earlier log is pushed out by one that could not be kept."""
    (tmp_path / "api.log").write_text("x" * 10)
    (tmp_path / "api.log.1").write_text("earlier")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=9))
    with pytest.raises(OSError, match="No space left"):
        rotate(tmp_path / "api.log", max_bytes=5, kept=2)
    assert (tmp_path / "api.log").read_text() == "x" * 10
    assert (tmp_path / "api.log.1").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_last_line_is_read_from_the_end(tmp_path):
    """Blank lines do not count; without a file there is none."""
    (tmp_path / "api.log").write_text("first\n" * 5000 + "last words\n\n")
    assert last_line(tmp_path / "api.log") == "last words"
    assert last_line(tmp_path / "none.log") == ""
