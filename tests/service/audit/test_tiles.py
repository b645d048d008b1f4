"""Tiles of a log: their paths, and the same roots and proofs as from all leaf hashes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audit.merkle import consistency_proof, inclusion_proof, leaf_hash, root
from service.audit.tiles import (
    ENTRIES,
    WIDTH,
    TiledTree,
    extend,
    join_entries,
    parse_tile_path,
    split_entries,
    tile_path,
)
from tests.service.audit.trees import consistency, inclusion

TEXTS = [f"entry {number}".encode() for number in range(70_000)]
LEAVES = [leaf_hash(text) for text in TEXTS]


class Tiles(dict):
    """Tiles in memory; a full one stands for those that held less, as on disk."""

    def read(self, level, number, width):
        """The tile, or the full one."""
        return self[level, number, width] if (level, number, width) in self else self[level, number, WIDTH]

    def write(self, level, number, width, data):
        """Keep a tile; a full one replaces the others."""
        self[level, number, width] = data
        if width == WIDTH:
            for key in [key for key in self if key[:2] == (level, number) and key[2] < WIDTH]:
                del self[key]


def tiled(*sizes: int) -> Tiles:
    """The tiles of a log that grew to these sizes, one after the other."""
    tiles, before = Tiles(), 0
    for size in sizes:
        extend(before, TEXTS[before:size], LEAVES[before:size], tiles.read, tiles.write)
        before = size
    return tiles


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        ((0, 0, 256), "tile/0/000"),
        ((1, 999, 256), "tile/1/999"),
        ((0, 1000, 7), "tile/0/x001/000.p/7"),
        ((0, 1_234_067, 256), "tile/0/x001/x234/067"),  # the example of C2SP tlog-tiles
        ((ENTRIES, 12, 255), "tile/entries/012.p/255"),
    ],
)
def test_paths_are_those_of_the_specification(tile, path):
    """Three digits a folder, `x` before each but the last."""
    assert tile_path(*tile) == path
    assert parse_tile_path(path.removeprefix("tile/")) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/1",
        "0/001.p/",
        "0/001.p/256",
        "0/x001",
        "x/001",
        "0/../001",
        "-1/001",
        "0/-05",
        "0/x-01/000",
        "0/x000/001",
        "00/001",
    ],
)
def test_other_paths_are_refused(path):
    """Each tile has one path."""
    with pytest.raises(ValueError, match=r"."):
        parse_tile_path(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1500), min_size=1, max_size=4, unique=True), st.data())
def test_a_log_that_grows_has_the_tree_of_its_leaves(sizes, data):
    """Roots, proofs and leaves at every size on the way, also of what an earlier checkpoint covered."""
    sizes.sort()
    tiles, size = tiled(*sizes), sizes[-1]
    tree, index, older = TiledTree(size, tiles.read), data.draw(st.integers(0, size - 1)), sizes[0]
    assert tree.root == root(LEAVES[:size])
    assert inclusion_proof(tree.subtree, size, index) == inclusion(LEAVES[:size], index)
    assert consistency_proof(tree.subtree, size, older) == consistency(LEAVES[:size], older)
    assert consistency_proof(tree.subtree, older, index % older) == consistency(LEAVES[:older], index % older)
    assert tree.leaves(index, size) == LEAVES[index:size]


def test_a_third_level_agrees():
    """70,000 entries fill a tile of level 1; proofs read few tiles."""
    tiles, reads = tiled(65_000, 65_536, 70_000), []

    def read(*tile):
        reads.append(tile)
        return tiles.read(*tile)

    tree = TiledTree(70_000, read)
    assert (2, 0, 1) in tiles
    assert tree.root == root(LEAVES)
    assert inclusion_proof(tree.subtree, 70_000, 40_000) == inclusion(LEAVES, 40_000)
    assert consistency_proof(tree.subtree, 70_000, 65_001) == consistency(LEAVES, 65_001)
    assert len(set(reads)) < 10


def test_what_was_never_signed_is_written_over():
    """An attempt wrote tiles of entries that the database then lost; the log goes on from what was signed."""
    tiles, lost = tiled(300), [b"lost"] * 500
    extend(300, lost, [leaf_hash(entry) for entry in lost], tiles.read, tiles.write)
    extend(300, TEXTS[300:310], LEAVES[300:310], tiles.read, tiles.write)
    assert TiledTree(310, tiles.read).root == root(LEAVES[:310])
    extend(310, TEXTS[310:1000], LEAVES[310:1000], tiles.read, tiles.write)
    assert TiledTree(1000, tiles.read).root == root(LEAVES[:1000])
    assert split_entries(tiles.read(ENTRIES, 3, 232), 232) == TEXTS[768:1000]


def test_a_bundle_gives_its_entries_back():
    """Also empty ones; one that is cut off is refused."""
    entries = [b"", b"x" * 65_535, b"y"]
    bundle = join_entries(entries)
    assert split_entries(bundle, 3) == entries
    assert split_entries(bundle, 2) == entries[:2]
    for cut in (bundle[:-1], b"", b"\x00"):
        with pytest.raises(ValueError, match="cut off"):
            split_entries(cut, 3)
