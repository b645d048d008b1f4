"""Files are opened in a root, whatever a path leads to, and whatever it becomes while it is opened."""

import os
import socket

import pytest

from service import confined
from service.confined import NotAFile, OutsideRoots, Root, Roots

SECRET = b"the key of all keys"


@pytest.fixture
def place(tmp_path):
    """A root with a file in a folder, and a secret beside the root."""
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "folder" / "file.json").write_bytes(b"{}")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "kek").write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def root(place) -> Root:
    """The root, without anything private."""
    return Root(place / "root")


def test_a_file_is_read_and_so_is_a_link_inside_the_root(root):
    """A cache of the hub consists of such links."""
    (root.folder / "link").symlink_to("folder/file.json")
    (root.folder / "folder" / "up").symlink_to("../link")
    (root.folder / "short").symlink_to(root.folder / "folder")
    for name in ("folder/file.json", "link", "folder/up", "short/file.json", "folder/../link"):
        with root.open(root.folder / name) as file:
            assert file.read() == b"{}"
    assert root.is_folder(root.folder / "short")
    assert not root.is_folder(root.folder / "link")


OUT = {
    "absolute": lambda f: (f / "x").symlink_to(f.parents[1] / "keys" / "kek"),
    "relative": lambda f: (f / "x").symlink_to("../../keys/kek"),
    "through a link": lambda f: ((f / "y").symlink_to("../../keys"), (f / "x").symlink_to("y/kek")),
    "to a folder": lambda f: (f / "x").symlink_to("../../keys"),
    "to the root's parent": lambda f: (f / "x").symlink_to("../.."),
    "in a circle": lambda f: (f / "x").symlink_to("x"),
    "to the open files of the process": lambda f: (f / "x").symlink_to("/proc/self/fd/0"),
    "to a folder that only begins like the root": lambda f: (f / "x").symlink_to("../../root-2/y"),
}


@pytest.mark.parametrize("name", OUT)
def test_a_link_that_leads_out_is_refused(root, name):
    """To open it, to list its folder, and to ask what it is."""
    (root.folder.parent / "root-2").mkdir()
    (root.folder.parent / "root-2" / "y").write_bytes(SECRET)
    folder = root.folder / "folder"
    OUT[name](folder)
    for action in (root.open, root.is_folder):
        with pytest.raises(OutsideRoots):
            action(folder / "x")
    with pytest.raises(OutsideRoots):
        root.files(root.folder)


def pipe(path) -> None:
    """A pipe that nobody writes to: whoever opens it the usual way waits for ever."""
    os.mkfifo(path)


def unix_socket(path) -> None:
    """A socket in the file system."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # a socket's path may have some hundred characters


SPECIAL = {
    "pipe": pipe,
    "socket": unix_socket,
    "link to a pipe": lambda p: (pipe(p.parents[1] / "p"), p.symlink_to("../p")),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_file_is_refused_without_waiting(root, name):
    """A pipe, a socket, and a link to a pipe."""
    SPECIAL[name](root.folder / "folder" / "x")
    with pytest.raises(NotAFile):
        root.files(root.folder / "folder")
    with pytest.raises(OSError):
        root.open(root.folder / "folder" / "x")


def test_a_folder_is_no_file_and_a_missing_file_is_missing(root):
    """Each with the error that its caller expects."""
    with pytest.raises(NotAFile):
        root.open(root.folder / "folder")
    with pytest.raises(FileNotFoundError):
        root.open(root.folder / "nothing")
    with pytest.raises(NotADirectoryError):
        root.files(root.folder / "folder" / "file.json")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_becomes_a_link_after_its_links_were_resolved_is_not_followed(root, place, monkeypatch, what):
    """Somebody replaces the file, or a folder above it, between the check and the use."""
    resolve = os.path.realpath
    target = root.folder / "folder" / "file.json"

    def and_replace(path):
        real = resolve(path)
        if what == "file":
            target.unlink()
            target.symlink_to(place / "keys" / "kek")
        else:
            (root.folder / "folder").rename(root.folder / "away")
            (place / "keys" / "file.json").write_bytes(SECRET)
            (root.folder / "folder").symlink_to(place / "keys")
        return real

    monkeypatch.setattr(confined.os.path, "realpath", and_replace)
    with pytest.raises(OutsideRoots):
        root.open(target)


def test_an_open_file_stays_the_file_that_was_checked(root, place):
    """Replacing it afterwards changes nothing for its reader."""
    target = root.folder / "folder" / "file.json"
    with root.open(target) as file:
        target.unlink()
        target.symlink_to(place / "keys" / "kek")
        assert file.read() == b"{}"


def test_a_path_is_looked_for_in_each_root(place):
    """By the operator's own link to a root as well; nowhere else, and never by a relative path."""
    (place / "shortcut").symlink_to(place / "root")
    roots = Roots("UNLEARND_X", [place / "missing", place / "shortcut"], [])
    for path in (place / "shortcut" / "folder", place / "root" / "folder", place / "keys" / ".." / "root" / "folder"):
        assert roots.find(path) == (Root(place / "root"), place / "root" / "folder")
    for path in (place / "keys", place / "root" / ".." / "keys" / "kek", place, "/", "root/folder", "."):
        with pytest.raises(OutsideRoots, match="UNLEARND_X") as refused:
            roots.find(path)
        assert str(place) not in str(refused.value)
    with pytest.raises(OutsideRoots, match="names no folder"):
        Roots("UNLEARND_X", [], []).find(place / "root")


def test_the_services_own_files_are_never_opened(place):
    """Neither below a root, nor as one, nor by a hard link; and a folder that contains them is not listed."""
    os.link(place / "keys" / "kek", place / "root" / "folder" / "copy.json")
    private = [place / "keys", place / "keys" / "kek", place / "not there"]
    root, path = Roots("X", [place], private).find(place / "keys" / "kek")
    for action in (root.open, root.is_folder, root.files):
        with pytest.raises(OutsideRoots, match="own files"):
            action(path)
    with pytest.raises(OutsideRoots, match="own files"):
        root.open(place / "root" / "folder" / "copy.json")
    with pytest.raises(OutsideRoots, match="own files"):
        root.files(place)
    with root.open(place / "root" / "folder" / "file.json") as file:
        assert file.read() == b"{}"
    (place / "keys" / "inner").mkdir()
    for inside in (place / "keys", place / "keys" / "inner"):
        with pytest.raises(OutsideRoots, match="names no folder"):
            Roots("X", [inside], private).find(place / "keys" / "inner")
