"""Deltas of published versions: rebuilt to the bit, refused if anything was changed, not for everybody."""

import io
import json
import shutil
import tarfile

import pytest

from service import delta
from service.apply import apply_delta
from service.audit.manifest import manifest
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import verify
from service.delta import Delta
from service.domain.errors import ClientError
from tests.service.api.submissions import assert_problem
from tests.service.jobs import published, release_folder


@pytest.fixture
def chain(api, services, model):
    """A function that publishes that many versions; returns the release folders, version 0 first."""

    def publish(count: int):
        for number in range(count):
            published(api, services, f"record {number}")
        return [release_folder(api, services, number) for number in range(count + 1)]

    return publish


def without_model(folder, target):
    """What `models download --delta` fetches."""
    return shutil.copytree(folder, target, ignore=lambda at, names: ["model"] if at == str(folder) else [])


def test_a_chain_of_five_versions_is_rebuilt_from_the_base(chain, tmp_path):
    """Each one from version 0 and its own delta alone; the folder is the release to the byte."""
    folders = chain(5)
    for number, folder in enumerate(folders[1:], 1):
        assert Delta(folder / "delta").ranks == [1] * number
        fetched = without_model(folder, tmp_path / f"delta-{number}")
        verified = apply_delta(folders[0], fetched, tmp_path / f"rebuilt-{number}")
        assert verified.statement["predicate"]["lineage"]["version"] == number
        assert manifest(tmp_path / f"rebuilt-{number}") == manifest(folder)


def test_a_chain_begins_again_before_its_rank_is_too_large(chain, tmp_path, monkeypatch):
    """The parent is then the new base."""
    monkeypatch.setattr(delta, "MOST_RANK", 2)
    folders = chain(4)
    deltas = [Delta(folder / "delta") for folder in folders[1:]]
    assert [(one.base["version"], one.ranks) for one in deltas] == [(0, [1]), (0, [1, 1]), (2, [1]), (2, [1, 1])]
    apply_delta(folders[2], folders[4], tmp_path / "rebuilt")
    with pytest.raises(VerificationError, match="not that of version 2"):
        apply_delta(folders[1], folders[4], tmp_path / "wrong")


def test_a_model_folder_alone_is_a_base(chain, base, tmp_path):
    """Whoever registered a model has it without a release folder."""
    folders = chain(1)
    apply_delta(base / "model", folders[1], tmp_path / "rebuilt")
    verify(tmp_path / "rebuilt")


def flip(file) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


TAMPERED = {
    "factors": lambda base, fetched: flip(fetched / "delta" / "adapter_model.safetensors"),
    "ranks": lambda base, fetched: flip(fetched / "delta" / "delta.json"),
    "card": lambda base, fetched: flip(fetched / "delta" / "model_card.md"),
    "no factors": lambda base, fetched: (fetched / "delta" / "adapter_model.safetensors").unlink(),
    "a file beside it": lambda base, fetched: (fetched / "delta" / "extra.py").write_text("import os"),
    "certificate": lambda base, fetched: flip(fetched / "certificate.dsse.json"),
    "base": lambda base, fetched: flip(base / "model" / "model.safetensors"),
    "base's tokenizer": lambda base, fetched: flip(base / "model" / "config.json"),
    "no base": lambda base, fetched: (base / "model" / "model.safetensors").unlink(),
    "no certificate": lambda base, fetched: (fetched / "certificate.dsse.json").unlink(),
    "no trust": lambda base, fetched: (fetched / "trust.json").unlink(),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_whatever_was_changed_is_refused_and_leaves_nothing(chain, tmp_path, name):
    """No folder, no temporary folder."""
    folders = chain(1)
    base = shutil.copytree(folders[0], tmp_path / "base")
    fetched = without_model(folders[1], tmp_path / "fetched")
    TAMPERED[name](base, fetched)
    with pytest.raises(VerificationError):
        apply_delta(base, fetched, tmp_path / "out" / "rebuilt")
    assert not list((tmp_path / "out").iterdir())


def test_an_existing_folder_is_left_alone(chain, tmp_path):
    """Nothing is overwritten."""
    folders = chain(1)
    (tmp_path / "rebuilt").mkdir()
    with pytest.raises(ClientError):
        apply_delta(folders[0], folders[1], tmp_path / "rebuilt")
    assert not list((tmp_path / "rebuilt").iterdir())


def test_a_release_verifies_without_its_delta_but_not_with_a_part_of_it(chain, tmp_path):
    """Most copies have none; one that has any must have it unchanged."""
    folder = shutil.copytree(chain(1)[1], tmp_path / "release")
    (folder / "delta" / "README.md").unlink()
    with pytest.raises(VerificationError) as caught:
        verify(folder)
    assert caught.value.code == ExitCode.ARTEFACT_MISMATCH
    shutil.rmtree(folder / "delta")
    verify(folder)


def test_a_version_is_the_child_of_a_parent_with_or_without_a_delta(chain, tmp_path):
    """The digest of a manifest leaves the delta out."""
    folders = chain(2)
    parent = shutil.copytree(folders[1], tmp_path / "parent")
    verify(folders[2], parent=parent)
    shutil.rmtree(parent / "delta")
    verify(folders[2], parent=parent)


def test_the_delta_is_for_those_who_may_have_its_base(api, services, chain, new_key):
    """With it and the new version, anybody could compute the version that still knows the records."""
    chain(1)
    paths = ("/v1/models/tiny/versions/1/delta.tar", "/v1/models/tiny/versions/1/files/delta/adapter_model.safetensors")
    plain = {"Authorization": f"Bearer {new_key('download')}"}
    auditor = {"Authorization": f"Bearer {new_key('download', 'audit')}"}
    for path in paths:
        assert_problem(api.get(path, headers=plain), 403)
        assert api.get(path, headers=auditor).status_code == 200
    assert_problem(api.get("/v1/models/tiny/versions/0/delta.tar"), 404)
    with tarfile.open(fileobj=io.BytesIO(api.get("/v1/models/tiny/versions/1/archive.tar").content)) as archive:
        assert not [name for name in archive.getnames() if name.startswith("delta/")]
    assert "delta" not in json.dumps(api.get("/hub/api/models/any/tiny/revision/v1", headers=auditor).json())


def test_a_delta_as_one_archive(api, chain, tmp_path):
    """Unpacked, it is what `apply` takes."""
    folders = chain(1)
    answer = api.get("/v1/models/tiny/versions/1/delta.tar")
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "fetched", filter="data")
    assert not (tmp_path / "fetched" / "model").exists()
    apply_delta(folders[0], tmp_path / "fetched", tmp_path / "rebuilt")
