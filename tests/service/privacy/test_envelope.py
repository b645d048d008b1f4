"""Sealing under data keys, and keyed hashes."""

from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidTag

from service.privacy.envelope import DataKey, FileKeyWrapper


@pytest.fixture
def wrapper(tmp_path):
    """A file key."""
    made = FileKeyWrapper(tmp_path / "kek")
    made.create()
    return made


def test_what_is_sealed_opens_only_where_it_belongs(wrapper):
    """Another item, request, key or a changed byte: nothing opens."""
    request = uuid4()
    envelope, wrapped = DataKey.create(request, wrapper)
    sealed = envelope.seal("record/0", b"a secret")
    again = DataKey.unwrap(request, wrapped, wrapper)
    assert again.open("record/0", sealed) == b"a secret"
    assert b"secret" not in sealed
    with pytest.raises(InvalidTag):
        again.open("record/1", sealed)
    with pytest.raises(InvalidTag):
        DataKey.unwrap(uuid4(), wrapped, wrapper)
    other, _ = DataKey.create(uuid4(), wrapper)
    with pytest.raises(InvalidTag):
        other.open("record/0", sealed)
    with pytest.raises(InvalidTag):
        again.open("record/0", sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_keyed_hashes_need_the_key_and_the_purpose(wrapper, tmp_path):
    """Nobody without the key can test a guess; two purposes give unrelated hashes."""
    other = FileKeyWrapper(tmp_path / "other" / "kek")
    other.create()
    assert wrapper.keyed_hash("a", b"x") == wrapper.keyed_hash("a", b"x")
    assert len({wrapper.keyed_hash("a", b"x"), wrapper.keyed_hash("b", b"x"), other.keyed_hash("a", b"x")}) == 3
