"""Sealing and commitments."""

import hashlib
import os
import stat
from uuid import RFC_4122, UUID, uuid4

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from service.audit.commitments import commit, forget_set_root, leaf_hash, merkle_root, request_commitment
from service.bootstrap import key_wrapper
from service.config import Settings
from service.files import CachedFile, write_atomically, write_private
from service.privacy.envelope import DataKey, FileKeyWrapper
from service.privacy.kms import HASH_KEY, KmsKeyWrapper
from service.privacy.randomness import random_uuid


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
    other = FileKeyWrapper(tmp_path / "other")
    other.create()
    assert wrapper.keyed_hash("a", b"x") == wrapper.keyed_hash("a", b"x")
    assert len({wrapper.keyed_hash("a", b"x"), wrapper.keyed_hash("b", b"x"), other.keyed_hash("a", b"x")}) == 3


def test_private_files_are_private_and_written_once(tmp_path):
    """Mode 0600, folder 0700, never overwritten."""
    path = tmp_path / "keys" / "k"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["k"]


def test_commitment_is_the_formula():
    """SHA-256(domain | nonce | u64 length | bytes); one changed space changes it."""
    nonce, text = bytes(range(32)), "héllo".encode()
    expected = hashlib.sha256(b"unlearn/commit/v1" + nonce + (6).to_bytes(8, "big") + text).digest()
    assert commit(nonce, text) == expected
    assert commit(nonce, text + b" ") != expected


def test_merkle_roots_of_rfc_6962():
    """The test vectors that Certificate Transparency's implementations share."""
    leaves = [bytes.fromhex(h) for h in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )]  # fmt: skip
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, root in roots.items():
        assert merkle_root(leaves[:count]).hex() == root


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=9, unique=True), st.randoms())
def test_the_forget_set_root_does_not_depend_on_order(texts, chance):
    """Leaves are sorted by ref."""
    pairs = [(f"{i:02}", request_commitment(f"{i:02}", [commit(b"n" * 32, t)])) for i, t in enumerate(texts)]
    root = forget_set_root(pairs)
    chance.shuffle(pairs)
    assert forget_set_root(pairs) == root
    assert leaf_hash(pairs[0][1]) != pairs[0][1]


@pytest.fixture
def kms(tmp_path, monkeypatch):
    """The wrapper on a server that speaks the API of AWS KMS, over HTTP; makes one with a key of its own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("kms")
    yield lambda: KmsKeyWrapper(client.create_key()["KeyMetadata"]["KeyId"], tmp_path)
    server.stop()


def test_data_keys_are_wrapped_by_kms(kms, tmp_path):
    """Over the wire: bound to the request and to the key; hashes need no call, and no key lies in the clear."""
    make = kms
    wrapper = make()
    wrapper.create()
    request = uuid4()
    envelope, wrapped = DataKey.create(request, wrapper)
    sealed = envelope.seal("record/0", b"a secret")
    again = KmsKeyWrapper(wrapper._key_id, tmp_path)
    assert DataKey.unwrap(request, wrapped, again).open("record/0", sealed) == b"a secret"
    with pytest.raises(InvalidTag):
        DataKey.unwrap(uuid4(), wrapped, wrapper)
    with pytest.raises(InvalidTag):
        DataKey.unwrap(request, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapper)
    assert wrapper.keyed_hash("a", b"x") == again.keyed_hash("a", b"x") != wrapper.keyed_hash("b", b"x")
    assert wrapper._hash_key not in (tmp_path / HASH_KEY).read_bytes()
    assert stat.S_IMODE((tmp_path / HASH_KEY).stat().st_mode) == 0o600
    with pytest.raises((InvalidTag, ClientError)):
        DataKey.unwrap(request, wrapped, make())


def test_the_settings_choose_the_wrapper(tmp_path):
    """A file unless a KMS key is named."""
    assert isinstance(key_wrapper(Settings(keys_dir=tmp_path)), FileKeyWrapper)
    assert isinstance(key_wrapper(Settings(keys_dir=tmp_path, kms_key_id="alias/unlearnd")), KmsKeyWrapper)


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


def test_random_names_are_random_uuids():
    """Version 4, variant of RFC 9562, and no two alike; in a forked process, too."""
    found = {random_uuid() for _ in range(1000)}
    assert {(u.version, u.variant) for u in found} == {(4, RFC_4122)}
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, random_uuid().bytes)
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    assert len(found | {random_uuid(), UUID(bytes=os.read(read_end, 16))}) == 1002
    os.close(read_end)
