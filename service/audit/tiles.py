"""The log's tree in tiles: files of up to 256 hashes, of which any mirror can serve a copy. No database, no network.

    tile/<L>/<N>         hashes 256 N to 256 N + 255 of level 8 L: each is the root over 256^L entries
    tile/entries/<N>     entries 256 N to 256 N + 255, each behind its length in two bytes

A file that is not full yet has `.p/<W>` behind its name and holds the first W. A full file never changes. See C2SP
tlog-tiles. The tree of a log of n entries is read and continued by O(log n) files.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from service.audit.merkle import HASH_BYTES, node_hash, root, split

LOG_WIDTH = 8
WIDTH = 1 << LOG_WIDTH  # hashes of a full tile
ENTRIES = "entries"
MOST_BYTES = 0xFFFF  # of an entry
CACHED = 64  # tiles that a tree keeps

Read = Callable[[int | str, int, int], bytes]  # level, number and width of a tile -> its bytes
Write = Callable[[int | str, int, int, bytes], None]


def tile_path(level: int | str, number: int, width: int = WIDTH) -> str:
    """The path of a tile: the number in groups of three digits, `x` before each but the last."""
    *first, last = f"{number:,}".split(",")
    first, last = [digits.zfill(3) for digits in first], last.zfill(3)
    path = "/".join(["tile", str(level), *(f"x{digits}" for digits in first), last])
    return path if width == WIDTH else f"{path}.p/{width}"


def parse_tile_path(path: str) -> tuple[int | str, int, int]:
    """The level, number and width of the tile at `<L>/<N>[.p/<W>]`.

    Raises:
        ValueError: No tile has this path.
    """
    whole, _, width = path.partition(".p/")
    level, *groups = whole.split("/")
    named: int | str = level if level == ENTRIES else int(level)
    tile = named, int("".join(groups).replace("x", "")), int(width) if width else WIDTH
    if tile_path(*tile) != f"tile/{path}" or "-" in path:
        raise ValueError("not the path of a tile")
    return tile


class TiledTree:
    """The tree over the first `size` entries of a log, read from its tiles."""

    def __init__(self, size: int, read: Read) -> None:
        """Read each tile when it is needed; `read` gives at least the bytes of the width that it is asked for."""
        self.size = size
        self._tile = lru_cache(CACHED)(read)

    @property
    def root(self) -> bytes:
        """The root of the whole tree."""
        return self.subtree(0, self.size) if self.size else root([])

    def subtree(self, start: int, end: int) -> bytes:
        """The root over the entries from `start` to `end`, as proofs need it (RFC 9162, section 2.1.1).

        `start` is a multiple of the least power of two that is not below `end - start`.
        """
        count = end - start
        if count & (count - 1):
            middle = start + split(count)
            return node_hash(self.subtree(start, middle), self.subtree(middle, end))
        return self._node(count.bit_length() - 1, start)

    def leaves(self, start: int, end: int) -> list[bytes]:
        """The leaf hashes of the entries from `start` to `end`."""
        hashes = [h for n in range(start // WIDTH, -(-end // WIDTH)) for h in self._hashes(0, n)]
        return hashes[start % WIDTH :][: end - start]

    def is_intact(self, number: int) -> bool:
        """Whether the leaf hashes of a tile give the hash that the level above has of it, if it is full."""
        hashes = self._hashes(0, number)
        return len(hashes) < WIDTH or root(hashes) == self._hashes(1, number // WIDTH)[number % WIDTH]

    def width(self, level: int | str, number: int) -> int:
        """How many hashes or entries a tile has in this tree; 0 or less if the tree has no such tile."""
        return min(WIDTH, (self.size >> (0 if isinstance(level, str) else LOG_WIDTH * level)) - WIDTH * number)

    def _node(self, level: int, start: int) -> bytes:
        """The root over the 2^level entries from `start` on."""
        tile_level, below = divmod(level, LOG_WIDTH)
        number, offset = divmod(start >> (LOG_WIDTH * tile_level), WIDTH)
        return root(self._hashes(tile_level, number)[offset : offset + (1 << below)])

    def _hashes(self, level: int, number: int) -> Sequence[bytes]:
        """The hashes of a tile."""
        width = self.width(level, number)
        return split_hashes(self._tile(level, number, width))[:width]


def extend(size: int, entries: Sequence[bytes], leaves: Sequence[bytes], read: Read, write: Write) -> None:
    """Write the tiles of a log of `size` entries that goes on with `entries`, whose hashes are `leaves`.

    Tiles that an attempt wrote before, and that were never signed, are written over.
    """
    held = read(ENTRIES, size // WIDTH, size % WIDTH) if size % WIDTH else b""
    before = join_entries(split_entries(held, size % WIDTH))
    for number, width, data in _continued(size, before, [join_entries([entry]) for entry in entries]):
        write(ENTRIES, number, width, data)
    level = 0
    while leaves:
        before = read(level, size // WIDTH, size % WIDTH)[: HASH_BYTES * (size % WIDTH)] if size % WIDTH else b""
        parents = []
        for number, width, data in _continued(size, before, leaves):
            write(level, number, width, data)
            if width == WIDTH:
                parents.append(root(split_hashes(data)))
        level, size, leaves = level + 1, size >> LOG_WIDTH, parents


def _continued(size: int, before: bytes, further: Sequence[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Tiles as (number, width, bytes): those after `size` items, of which the last tile holds `before`."""
    first = further[: WIDTH - size % WIDTH]
    yield size // WIDTH, size % WIDTH + len(first), before + b"".join(first)
    for start in range(len(first), len(further), WIDTH):
        items = further[start : start + WIDTH]
        yield (size + start) // WIDTH, len(items), b"".join(items)


def split_hashes(data: bytes) -> list[bytes]:
    """The hashes of a tile."""
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def join_entries(entries: Sequence[bytes]) -> bytes:
    """A bundle of entries."""
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def split_entries(data: bytes, width: int) -> list[bytes]:
    """The first `width` entries of a bundle.

    Raises:
        ValueError: The bundle holds fewer.
    """
    entries, position = [], 0
    for _ in range(width):
        (length,) = struct.unpack_from(">H", data, position) if position + 2 <= len(data) else (MOST_BYTES + 1,)
        position += 2 + length
        if position > len(data):
            raise ValueError("the bundle of entries is cut off")
        entries.append(data[position - length : position])
    return entries
