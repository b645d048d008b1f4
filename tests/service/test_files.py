"""Private files, and files that are read again once they change."""

import stat

import pytest

from service.files import CachedFile, write_atomically, write_private


def test_private_files_are_private_and_written_once(tmp_path):
    """Mode 0600, folder 0700, never overwritten."""
    path = tmp_path / "keys" / "k"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["k"]


def test_a_file_is_read_again_once_it_is_another(tmp_path):
    """As often as it is replaced, by one of the same size too; and not otherwise."""
    path, parsed = tmp_path / "file", []
    read = CachedFile(path, lambda data: parsed.append(data) or data)
    with pytest.raises(FileNotFoundError):
        read()
    for content in ("one", "two", "three"):
        write_atomically(path, content)
        assert read() == read() == content.encode()
    assert parsed == [b"one", b"two", b"three"]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read()
