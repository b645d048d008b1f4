"""Registering is no way to read the server's files: neither by a path, nor by a link, nor by a change meanwhile."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import select

from service.db.log_tables import AuditEntry
from service.db.tables import Model
from service.steps.operator import register
from service.steps.upkeep.sweep import collect_garbage
from tests.service.api.submissions import counts
from tests.service.conftest import registration


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """A copy of the model's folder, beside the folders of keys and storage, under the same root."""
    shutil.copytree(base / "model", tmp_path / "m")
    return tmp_path / "m"


def assert_refused(answer, field: str, code: str) -> None:
    """422 with the field and the code, and without the path."""
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["errors"][0]["field"]) == (422, code, field), problem
    assert "/" not in problem["detail"], problem


def assert_nothing_was_kept(services) -> None:
    """There is no model, and storage has no copy of any key."""
    assert counts(services)[0] == 0
    keys = {path.read_bytes() for path in services.settings.keys_dir.rglob("*") if path.is_file()}
    copies = [path for path in services.settings.storage_dir.rglob("*") if path.is_file() and path.read_bytes() in keys]
    assert not copies
    assert not list((services.settings.storage_dir / "staging").iterdir())


def replace_by_link(path: Path, target: Path) -> None:
    """Put a link in the place of a file."""
    path.unlink()
    path.symlink_to(target)


LINKS = {
    "the key-encryption key": lambda f, keys: (f / "extra.json").symlink_to(keys / "kek"),
    "a signing key, by a relative link": lambda f, _: (f / "extra.txt").symlink_to("../keys/release.pem"),
    "a key, by a link to a link": lambda f, keys: (
        (f / "first.json").symlink_to(keys / "kek"),
        (f / "second.json").symlink_to("first.json"),
    ),
    "a key, by a hard link": lambda f, keys: os.link(keys / "kek", f / "extra.json"),
    "a file outside of every root": lambda f, _: (f / "extra.txt").symlink_to("/etc/passwd"),
    "the weights": lambda f, keys: replace_by_link(f / "model.safetensors", keys / "kek"),
    "the configuration": lambda f, keys: replace_by_link(f / "config.json", keys / "trust.json"),
    "the folder of keys": lambda f, keys: (f / "sub").symlink_to(keys),
    "a file that would not be copied": lambda f, _: (f / "notes.pdf").symlink_to("/etc/passwd"),
    "a hidden file": lambda f, _: (f / ".hidden").symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_model_folder_with_a_link_out_is_refused(api, services, base, folder, name):
    """What it leads to would be published to every key with the scope download."""
    LINKS[name](folder, services.settings.keys_dir)
    answer = api.post("/v1/models", json=registration(base, path=str(folder)))
    assert_refused(answer, "path", "outside_roots")
    assert_nothing_was_kept(services)


def test_a_config_that_is_nested_too_deeply_is_refused(api, base, folder):
    """Python gives up on it in another way than on what is not JSON."""
    (folder / "config.json").write_text("[" * 100_000)
    answer = api.post("/v1/models", json=registration(base, path=str(folder)))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "path")


def test_reference_texts_that_are_nested_too_deeply_are_refused(api, base, tmp_path):
    """The line is named."""
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000)
    answer = api.post("/v1/models", json=registration(base, retain_path=str(deep)))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "retain_path")


@pytest.mark.parametrize("name", ["extra.json", "config.json", "sub/extra.json"])
def test_a_pipe_in_a_model_folder_is_refused_at_once(api, services, base, folder, name):
    """Opened the usual way, it would hold a thread of the API for ever."""
    (folder / "sub").mkdir()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_refused(api.post("/v1/models", json=registration(base, path=str(folder))), "path", "invalid")
    assert_nothing_was_kept(services)


PATHS = {
    "the folder of keys": lambda tmp_path: tmp_path / "keys",
    "the storage": lambda tmp_path: tmp_path / "storage",
    "a folder that contains the keys": lambda tmp_path: tmp_path,
    "a folder outside": lambda tmp_path: "/etc",
    "the root of the file system": lambda tmp_path: "/",
    "a way out by dots": lambda tmp_path: f"{tmp_path}{'/..' * 20}/etc",
    "the keys by dots": lambda tmp_path: f"{tmp_path}/m/../keys",
    "a link out": lambda tmp_path: (tmp_path / "link").symlink_to("/etc") or tmp_path / "link",
    "a relative path": lambda tmp_path: os.path.relpath(tmp_path / "m"),
    "what is not there": lambda tmp_path: "/no such folder",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_model_is_registered_from_a_root_alone(api, services, base, folder, tmp_path, name):
    """The operator names the roots; the folders of the service are in none of them."""
    path = str(PATHS[name](tmp_path))
    assert_refused(api.post("/v1/models", json=registration(base, path=path)), "path", "outside_roots")
    assert_nothing_was_kept(services)


@pytest.mark.parametrize("field", ["retain_path", "heldout_path"])
@pytest.mark.parametrize("path", ["{}/keys/kek", "{}/keys/log.txt", "{}/link", "{}/m/../keys/kek", "/etc/passwd"])
def test_reference_texts_are_read_from_a_root_alone(api, services, base, folder, tmp_path, field, path):
    """A file of the server would become text that the model is trained on."""
    (tmp_path / "keys" / "log.txt").write_text("a line\n" * 30)
    (tmp_path / "link").symlink_to("keys/log.txt")
    answer = api.post("/v1/models", json=registration(base, **{field: path.format(tmp_path)}))
    assert_refused(answer, field, "outside_roots")
    assert counts(services)[0] == 0


def test_reference_texts_may_be_a_pipe_no_more_than_a_folder(api, base, tmp_path):
    """Neither is opened as a file."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", base):
        answer = api.post("/v1/models", json=registration(base, heldout_path=str(path)))
        assert_refused(answer, "heldout_path", "invalid")


def test_reference_texts_may_lie_where_corpora_do(api, services, base, tmp_path):
    """Retain text is often a part of the training data."""
    shutil.copy(base / "retain.jsonl", tmp_path / "retain.jsonl")
    services.settings.model_roots, services.settings.corpus_roots = str(base), str(tmp_path)
    body = registration(base, retain_path=str(tmp_path / "retain.jsonl"))
    assert api.post("/v1/models", json=body).status_code == 201
    assert_refused(
        api.post("/v1/models", json={**body, "name": "other", "path": str(tmp_path)}), "path", "outside_roots"
    )


def test_without_roots_nothing_is_registered_by_a_path(api, services, base):
    """The answer names the variable that an operator has to set."""
    services.settings.model_roots = services.settings.corpus_roots = ""
    answer = api.post("/v1/models", json=registration(base))
    assert_refused(answer, "path", "outside_roots")
    assert "UNLEARND_MODEL_ROOTS names no folder" in answer.json()["detail"]


def test_what_is_published_is_what_was_checked(api, services, base, folder, monkeypatch):
    """Somebody changes the folder while it is registered: to code of its own, and to a link to a key."""
    original, check = (folder / "config.json").read_bytes(), register.check_model_folder

    def and_change(copy):
        check(copy)
        (folder / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}')
        replace_by_link(folder / "tokenizer.json", services.settings.keys_dir / "kek")

    monkeypatch.setattr(register, "check_model_folder", and_change)
    assert api.post("/v1/models", json=registration(base, path=str(folder))).status_code == 201
    files = {f["path"]: f["sha256"] for f in api.get("/v1/models/tiny/versions/0").json()["files"]}
    assert files["model/config.json"] == hashlib.sha256(original).hexdigest()
    assert api.get("/v1/models/tiny/versions/0/files/model/config.json").content == original
    kek = (services.settings.keys_dir / "kek").read_bytes()
    assert hashlib.sha256(kek).hexdigest() not in files.values()


def hub_cache(cache: Path, model: Path) -> Path:
    """The hub's cache of `any/tiny`: blobs, and a snapshot of links to them; returns the snapshot."""
    repository, commit = cache / "models--any--tiny", "0" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in model.iterdir():
        shutil.copy(path, repository / "blobs" / f"of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/of-{path.name}")
    return snapshot


@pytest.mark.parametrize("by", ["hub id", "path", "hub id without roots"])
def test_a_hub_cache_consists_of_links_and_is_registered(api, services, base, tmp_path, monkeypatch, by):
    """By the hub's id, from the folder of that model alone; by its path, if a root holds the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = hub_cache(tmp_path / "cache", base / "model")
    path = str(snapshot) if by == "path" else "any/tiny"
    if by == "hub id without roots":
        services.settings.model_roots, services.settings.corpus_roots = "", str(base)
    assert api.post("/v1/models", json=registration(base, path=path)).status_code == 201
    served = api.get("/v1/models/tiny/versions/0/files/model/config.json").content
    assert served == (base / "model" / "config.json").read_bytes()


@pytest.mark.parametrize("target", ["keys", "another model"])
def test_a_link_out_of_a_models_folder_in_the_hub_cache_is_refused(api, services, base, tmp_path, monkeypatch, target):
    """Whoever can write into the cache cannot read more than that model through it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = hub_cache(tmp_path / "cache", base / "model")
    (tmp_path / "cache" / "models--any--other").write_bytes(b"{}")
    (snapshot / "extra.json").symlink_to(tmp_path / ("keys/kek" if target == "keys" else "cache/models--any--other"))
    assert_refused(api.post("/v1/models", json=registration(base, path="any/tiny")), "path", "outside_roots")
    assert_nothing_was_kept(services)


def test_a_base_is_copied_and_kept_as_long_as_its_model(api, services, base, folder):
    """It is no version and nobody can fetch it; the collector leaves it alone."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    answer = api.post("/v1/models", json=registration(base, base_path=str(folder)))
    assert answer.status_code == 201, answer.json()
    with services.db.transaction() as session:
        digest = session.scalar(select(Model.base))
    kept = services.storage.release(digest) / "model" / "model.safetensors"
    assert kept.read_bytes() == weights.read_bytes()
    for path in (services.storage.release(digest), kept):
        os.utime(path, (0, 0))
    collect_garbage(services)
    assert kept.exists()
    assert [v["version"] for v in api.get("/v1/models/tiny/versions").json()["items"]] == [0]


def test_named_neighbours_are_copied_counted_and_kept(api, services, base, tmp_path):
    """They are in the log, and the collector leaves the copy alone."""
    file = tmp_path / "others.txt"
    file.write_text("Ada Adler lives in Ulm.\nBob Braun lives in Rome.\n")
    answer = api.post("/v1/models", json=registration(base, neighbour_paths={"crm": str(file)}))
    assert (answer.status_code, answer.json()["neighbour_records"]) == (201, {"crm": 2}), answer.json()
    with services.db.transaction() as session:
        texts = session.scalar(select(Model.neighbours))["crm"]
        logged = json.loads(session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index.desc())).first())
    assert logged["neighbours"] == {"crm": texts}
    kept = services.storage.reference_texts(texts["sha256"])
    os.utime(kept, (0, 0))
    collect_garbage(services)
    assert kept.exists()


@pytest.mark.parametrize("name", ["nothing in it", "outside", "the retain file"])
def test_bad_neighbours_are_refused_by_name(api, services, base, tmp_path, name):
    """Nothing is registered."""
    (tmp_path / "others.txt").write_text("")
    files = {
        "nothing in it": tmp_path / "others.txt",
        "the retain file": base / "retain.jsonl",
        "outside": "/etc/passwd",
    }
    answer = api.post("/v1/models", json=registration(base, neighbour_paths={"crm": str(files[name])}))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "neighbour_paths.crm")
    assert counts(services)[0] == 0


def other_vocabulary(config: Path) -> None:
    """Let a configuration name another size."""
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 7}))


OTHER_TOKENS = ("other tokens", "tokens in a list", "an added token")


def other_tokens(tokenizer: Path, name: str) -> None:
    """Let as many tokens have other ids, in a vocabulary as BPE writes it, or as unigram models do; or an added one."""
    content = json.loads(tokenizer.read_text())
    tokens = sorted(content["model"]["vocab"], reverse=True)
    if name == "other tokens":
        content["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    elif name == "tokens in a list":
        content["model"]["vocab"] = [[token, 0.0] for token in tokens]
    else:
        content["added_tokens"] = [{"id": 3, "content": content["added_tokens"][0]["content"]}]
    tokenizer.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["itself", "another vocabulary", *OTHER_TOKENS, "a link out"])
def test_a_base_that_is_none_is_refused(api, services, base, folder, name):
    """It would be a reference that knows the texts, one that cannot be compared, or a way to read files."""
    if name == "another vocabulary":
        other_vocabulary(folder / "config.json")
    elif name in OTHER_TOKENS:
        other_tokens(folder / "tokenizer.json", name)
    elif name == "a link out":
        (folder / "extra.json").symlink_to(services.settings.keys_dir / "kek")
    answer = api.post("/v1/models", json=registration(base, base_path=str(folder)))
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["field"]) == (422, "base_path"), problem
    assert_nothing_was_kept(services)
