"""The key-encryption key in a KMS."""

import stat
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.exceptions import InvalidTag

from service.bootstrap import key_wrapper
from service.config import Settings
from service.privacy.envelope import DataKey, FileKeyWrapper
from service.privacy.epochs import EpochKeys
from service.privacy.kms import HASH_KEY, KmsKeyWrapper


@pytest.fixture
def kms(tmp_path, monkeypatch):
    """The wrapper on a server that speaks the API of AWS KMS, over HTTP; makes one with a key of its own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
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


def test_a_kms_key_is_replaced_by_another(kms, tmp_path):
    """Epoch keys and hashes go on under the new one; the old one is not needed any more."""
    old, new = kms(), kms()
    old.create()
    (tmp_path / "epochs").mkdir()
    keys = EpochKeys(old, tmp_path / "epochs", 60, lambda _: None)
    wrapped, hashed = keys.wrap(b"data key", b"a request"), keys.keyed_hash("a", b"x")
    assert keys.rewrap(new, lambda: old.rotate_hash_key(new)) == 1
    again = EpochKeys(KmsKeyWrapper(new._key_id, tmp_path), tmp_path / "epochs", 60, lambda _: None)
    assert again.unwrap(wrapped, b"a request") == b"data key"
    assert again.keyed_hash("a", b"x") == hashed
    with pytest.raises((InvalidTag, ClientError)):
        EpochKeys(KmsKeyWrapper(old._key_id, tmp_path), tmp_path / "epochs", 60, lambda _: None).unwrap(
            wrapped, b"a request"
        )
