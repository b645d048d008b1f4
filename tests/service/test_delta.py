"""Deltas of published versions: rebuilt to the bit, refused if anything was changed, not for everybody."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service import apply, candidate, delta
from service.apply import apply_delta
from service.audit.manifest import manifest
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import verify
from service.changed_weights import ChangedWeights
from service.delta import Delta
from service.domain.errors import ClientError
from service.tensor_file import TensorFile
from service.weight_files import UnreadableWeights
from tests.service.api.submissions import assert_problem
from tests.service.jobs import publish_what_waits, published, release_folder


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
    (tmp_path / "out").mkdir()
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


@pytest.mark.parametrize("path", ["model//etc/passwd", "/etc/passwd", "../x", "model/../../x", "model/./x", "a//b", ""])
def test_a_certificate_names_no_file_elsewhere(path):
    """`model//x` is relative, and its part behind `model/` is not."""
    assert not apply._lies_inside(path)
    assert apply._lies_inside("model/a/b.safetensors")


def test_a_withdrawn_version_is_in_no_later_delta(api, services, chain, tmp_path):
    """Its change would be in the middle of the chain: the next version begins a new one, the old delta is closed."""
    folders = chain(2)
    assert Delta(folders[2] / "delta").ranks == [1, 1]
    api.post("/v1/models/tiny/versions/1/withdraw", json={"reason": "faulty", "reopen": True})
    assert_problem(api.get("/v1/models/tiny/versions/2/delta.tar"), 404)
    published(api, services, "another record")
    newest = release_folder(api, services, 3)
    assert (Delta(newest / "delta").base["version"], Delta(newest / "delta").ranks) == (2, [1])
    assert api.get("/v1/models/tiny/versions/3/delta.tar").status_code == 200


def test_the_version_after_a_withdrawn_newest_has_a_delta(api, services, chain):
    """The withdrawn one lies between their numbers, and not on the way."""
    chain(2)
    api.post("/v1/models/tiny/versions/2/withdraw", json={"reason": "faulty", "reopen": True})
    publish_what_waits(services)
    newest = release_folder(api, services, 3)
    assert (Delta(newest / "delta").base["version"], Delta(newest / "delta").ranks) == (0, [1, 1])
    assert api.get("/v1/models/tiny/versions/3/delta.tar").status_code == 200


def test_whoever_fetches_a_delta_is_registered_for_its_base_as_well(api, chain):
    """With the new version it is as good as the base."""
    chain(1)
    api.get("/v1/models/tiny/versions/1/delta.tar")
    for number in (0, 1):
        assert len(api.get(f"/v1/models/tiny/versions/{number}/downloads").json()["items"]) == 1


def test_a_change_of_a_rank_that_no_adapter_may_have_is_left_out(chain, monkeypatch):
    """The release has no delta, and verifies."""
    monkeypatch.setattr(candidate, "MOST_RANK", 0)
    folder = chain(1)[1]
    assert not (folder / "delta").exists()
    verify(folder)


def change(folder, modules, dtype="F32"):
    """A change of rank 1 of these modules, [4, 4] each."""
    folder.mkdir()
    factors = np.full((4, 1), 1e-5, "<f4"), np.full((1, 4), -1e-4, "<f4")
    delta.write_adapter(folder, dict.fromkeys(modules, factors), dtype)
    return Delta(folder)


def test_a_chain_leaves_tensors_alone_that_a_later_version_does_not_change(tmp_path):
    """In float16 a tiny negative sum is -0.0; adding a change of zeros would make it 0.0."""
    base, rebuilt = {"version": 0, "files": {}}, {}
    save_file({f"m.{name}.weight": np.zeros((4, 4), "<f2") for name in "ab"}, tmp_path / "0.safetensors")
    steps = [change(tmp_path / "change-1", ["m.a", "m.b"]), change(tmp_path / "change-2", ["m.b"])]
    before = None
    for number, step in enumerate(steps, 1):
        folder = tmp_path / f"delta-{number}"
        folder.mkdir()
        delta.write_delta(folder, step, base, before)
        before = Delta(folder)
        parent = ChangedWeights(tmp_path, [f"{number - 1}.safetensors"], step)
        (tmp_path / f"{number}.safetensors").write_bytes(b"".join(parent.file(f"{number - 1}.safetensors")))
        rebuilt[number] = b"".join(ChangedWeights(tmp_path, ["0.safetensors"], before).file("0.safetensors"))
        assert rebuilt[number] == (tmp_path / f"{number}.safetensors").read_bytes()
    assert before.ranks == [1, 1]


MEMBER = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
MALFORMED = {
    "no header": None,
    "a negative size": MEMBER | {"data_offsets": [16, 0]},
    "a negative place": MEMBER | {"data_offsets": [-16, 0]},
    "a huge place": MEMBER | {"data_offsets": [0, 2**62]},
    "words for places": MEMBER | {"data_offsets": ["a", 3]},
    "a list for a dtype": MEMBER | {"dtype": ["F32"]},
    "a negative shape": MEMBER | {"shape": [-1, -4]},
    "a hole": MEMBER | {"data_offsets": [4, 20]},
    "too short": MEMBER | {"data_offsets": [0, 8]},
    "no object": [1],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_weights_file_is_named(tmp_path, name):
    """Whatever its header says."""
    header = json.dumps({"m.weight": MALFORMED[name]}).encode() if name != "no header" else b"{"
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(UnreadableWeights):
        TensorFile(file)


def test_a_change_carries_no_text_in_its_names(tmp_path):
    """A module has the name of a weight, behind one word at most; factors are of one dtype."""
    save_file({"m.weight": np.zeros((4, 4), "<f4")}, tmp_path / "model.safetensors")
    for number, module in enumerate(["Jane Doe 12 Elm St.m", "Jane.m", "12 Elm St.m"]):
        with pytest.raises(UnreadableWeights):
            ChangedWeights(tmp_path, ["model.safetensors"], change(tmp_path / str(number), [module]))
    ChangedWeights(tmp_path, ["model.safetensors"], change(tmp_path / "word", ["data2vec_text.m"]))
    with pytest.raises(UnreadableWeights):  # two names of the same weights
        ChangedWeights(tmp_path, ["model.safetensors"], change(tmp_path / "two", ["m", "transformer.m"]))


def test_one_matrix_of_a_stack_is_changed(tmp_path):
    """Whether the stack's name ends with `.weight` or not; the other matrices keep their bytes."""
    stack = np.zeros((3, 4, 4), "<f4")
    save_file({"m.down.weight": stack, "m.up": stack}, tmp_path / "model.safetensors")
    step = change(tmp_path / "change", ["m.down.1", "m.up.0", "m.up.2"])
    changed = ChangedWeights(tmp_path, ["model.safetensors"], step)
    (tmp_path / "changed.safetensors").write_bytes(b"".join(changed.file("model.safetensors")))
    tensors = load_file(tmp_path / "changed.safetensors")
    moved = {name: [bool(matrix.any()) for matrix in tensor] for name, tensor in tensors.items()}
    assert moved == {"m.down.weight": [False, True, False], "m.up": [True, False, True]}


@pytest.mark.parametrize("modules", [["m.3"], ["m.01"], ["m"], ["m", "m.0"], ["m.-1"], ["flat.0"], ["m.0.0"]])
def test_a_change_of_no_matrix_of_a_stack_is_refused(tmp_path, modules):
    """An index behind the last one, or written otherwise; the whole stack; a matrix that is no stack."""
    tensors = {"m.weight": np.zeros((3, 4, 4), "<f4"), "flat.weight": np.zeros((4, 4), "<f4")}
    save_file(tensors, tmp_path / "model.safetensors")
    step = change(tmp_path / "change", modules)
    with pytest.raises(UnreadableWeights):
        list(ChangedWeights(tmp_path, ["model.safetensors"], step).file("model.safetensors"))


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
