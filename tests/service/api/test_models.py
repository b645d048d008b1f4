"""Registering a model, and a clear answer for every bad folder and every bad file of reference texts."""

import base64
import json
import shutil

import pytest

from tests import support
from tests.service.api.submissions import assert_problem, counts
from tests.service.conftest import registration
from tests.service.jobs import published


def damaged(base, folder, change) -> str:
    """A copy of the model's folder with one thing changed."""
    shutil.copytree(base / "model", folder)
    change(folder)
    return str(folder)


def ask_for_code(folder) -> None:
    """Give config.json an auto_map."""
    change_config(folder, auto_map={"AutoModel": "m.M"})


def name_weights(folder, weights: object) -> None:
    """Split the model into one shard, and have its index name these weights."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"gpt_neox.embed_in.weight": weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder, name: str = "config.json", **fields) -> None:
    """Set fields of a configuration."""
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **fields}))


def safetensors_file(**changes) -> bytes:
    """A file with one tensor of eight bytes, its header changed; the data it speaks of ends with the file."""
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    header = json.dumps({"t": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(tensor["data_offsets"][1])


BAD_FOLDERS = {
    "no safetensors": lambda f: (f / "model.safetensors").unlink(),
    "pickle beside": lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
    "code beside": lambda f: (f / "modeling_x.py").write_text(""),
    "remote code": ask_for_code,
    "cut weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
    "no weights inside": lambda f: (f / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}"),
    "a dtype that nobody knows": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(dtype="F7")),
    "a shape of another size": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(shape=[3])),
    "a hole between tensors": lambda f: (f / "model.safetensors").write_bytes(safetensors_file(data_offsets=[4, 12])),
    "weights that nothing loads": lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
    "a part that is missing": lambda f: (
        (f / "model.safetensors").rename(f / "a.safetensors"),
        (f / "model.safetensors.index.json").write_text('{"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}'),
    ),
    "broken config": lambda f: (f / "config.json").write_text("{"),
    "weights of another folder": lambda f: name_weights(f, "../base0/model/model.safetensors"),
    "weights by an absolute path": lambda f: name_weights(f, "/models/other/model.safetensors"),
    "weights that are no name": lambda f: name_weights(f, ["model-00001-of-00001.safetensors"]),
    "an index without weights": lambda f: (f / "model.safetensors.index.json").write_text("{}"),
    "a configuration that names weights elsewhere": lambda f: change_config(
        f, transformers_weights="../other/model.safetensors"
    ),
    "a configuration that names weights beside it": lambda f: (
        (f / "model.safetensors").rename(f / "w.safetensors"),
        change_config(f, transformers_weights="w.safetensors"),
    ),
    "a vocabulary elsewhere": lambda f: change_config(f, "tokenizer_config.json", vocab_file="/etc/hostname"),
    "one of several tokenizers elsewhere": lambda f: change_config(
        f, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.json", "../other/tokenizer.json"]
    ),
    "an adapter of another model": lambda f: (f / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/models/other"}'
    ),
    "an encoder-decoder": lambda f: change_config(f, architectures=["BartForConditionalGeneration"]),
    "an encoder-decoder of an unnamed architecture": lambda f: change_config(
        f, architectures=None, is_encoder_decoder=True
    ),
    "a decoder of an encoder-decoder": lambda f: change_config(
        f, architectures=["BartForCausalLM"], is_encoder_decoder=True
    ),
    "a model that sees": lambda f: change_config(f, architectures=["Gemma3ForConditionalGeneration"]),
    "a causal model that hears": lambda f: change_config(f, audio_config={"hidden_size": 8}),
    "a classifier": lambda f: change_config(f, architectures=["GPT2ForSequenceClassification"]),
    "an architecture that is no list": lambda f: change_config(f, architectures="GPTNeoXForCausalLM"),
    "a type that cannot be trained": lambda f: change_config(f, model_type="rwkv"),
    "a type that is no name": lambda f: change_config(f, model_type="a type; by Jane Doe"),
    "no type": lambda f: change_config(f, model_type=None),
    "quantised weights": lambda f: change_config(f, quantization_config={"quant_method": "fp8"}),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
}


def test_unsafe_model_folders_are_refused(api, services, base, tmp_path, subtests):
    """422 naming `path`; no model is made."""
    for number, (name, damage) in enumerate(BAD_FOLDERS.items()):
        with subtests.test(name):
            path = damaged(base, tmp_path / f"m{number}", damage)
            assert_problem(api.post("/v1/models", json=registration(base, path=path)), 422, "path")
            assert counts(services)[0] == 0


def test_weights_in_shards_are_registered(api, base, tmp_path):
    """Their index names the files beside it."""
    path = damaged(base, tmp_path / "m", lambda f: name_weights(f, "model-00001-of-00001.safetensors"))
    assert api.post("/v1/models", json=registration(base, path=path)).status_code == 201


def test_files_that_a_tokenizer_names_beside_it_or_for_old_libraries_are_fine(api, base, tmp_path):
    """Many models name the exporter's cache for a file that no library reads any more."""
    fields = {
        "tokenizer_file": None,
        "special_tokens_map_file": "/root/.cache/x",
        "fast_tokenizer_files": ["tokenizer.json"],
    }
    path = damaged(base, tmp_path / "m", lambda f: change_config(f, "tokenizer_config.json", **fields))
    assert api.post("/v1/models", json=registration(base, path=path)).status_code == 201


BAD_CORPORA = {
    "empty": "",
    "too few": "\n".join(f"line {i}" for i in range(19)),
    "blank lines": "\n" * 100,
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_heldout_that_cannot_set_a_threshold_is_refused(api, base, tmp_path, name):
    """422 naming `heldout_path`."""
    (tmp_path / "h.txt").write_text(BAD_CORPORA[name])
    answer = api.post("/v1/models", json=registration(base, heldout_path=str(tmp_path / "h.txt")))
    assert_problem(answer, 422, "heldout_path")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("txt", b""), ("jsonl", b'{"text": "a"}\nnot json\n'), ("jsonl", b'{"no": 1}\n'), ("csv", b"a,b\n1,2\n"),
        ("txt", b"\xff\xfe"),
    ],
)  # fmt: skip
def test_unreadable_retain_is_refused(api, base, tmp_path, suffix, content):
    """422 naming `retain_path`."""
    (tmp_path / f"r.{suffix}").write_bytes(content)
    answer = api.post("/v1/models", json=registration(base, retain_path=str(tmp_path / f"r.{suffix}")))
    assert_problem(answer, 422, "retain_path")


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"path": "/nowhere"}, 422, "path"), ({"path": "no such/hub id!"}, 422, "path"),
        ({"retain_path": "/nowhere"}, 422, "retain_path"), ({"name": "No Spaces"}, 422, "name"),
        ({"policy": {"rank": 0}}, 422, "policy.rank"), ({"policy": {"loss": "x"}}, 422, "policy.loss"),
        ({"policy": {"surprise": 1}}, 422, "policy.surprise"), ({"extra": 1}, 422, "extra"),
    ],
)  # fmt: skip
def test_bad_registrations_name_their_field(api, base, changes, status, field):
    """The same form as everywhere."""
    assert_problem(api.post("/v1/models", json=registration(base, **changes)), status, field)


def test_a_name_is_taken_once(api, base, model):
    """409, and the first one stands."""
    assert_problem(api.post("/v1/models", json=registration(base)), 409, "name")


def test_corpora_may_be_jsonl_csv_or_lines(api, base, tmp_path):
    """All three give the same number of texts."""
    lines = [f"text number {i}" for i in range(25)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("id,text\n" + "\n".join(f'{i},"{t}"' for i, t in enumerate(lines)))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
    for path in sorted(tmp_path.glob("?.*")):
        made = api.post("/v1/models", json=registration(base, name=f"m-{path.suffix[1:]}", heldout_path=str(path)))
        assert made.json()["heldout_records"] == 25


def test_heldout_texts_that_are_retain_texts_are_refused(api, base, tmp_path):
    """One file as both, and a file with one near copy: 422 naming `heldout_path`, with counts and without a text."""
    heldout = [*support.HELDOUT, support.RETAIN[0].replace("pounds", "pounds now")]
    copied = support.write_texts(tmp_path / "heldout.jsonl", [*heldout, support.RETAIN[1]])
    same = support.write_texts(tmp_path / "same.jsonl", support.HELDOUT)
    for retain, path, overlap in (
        (same, same, "60 are also retain texts, and 0 are near"),
        (base / "retain.jsonl", copied, "1 are also retain texts, and 1 are near copies"),
    ):
        answer = api.post("/v1/models", json=registration(base, retain_path=str(retain), heldout_path=str(path)))
        assert_problem(answer, 422, "heldout_path")
        assert overlap in answer.text
        assert "Street" not in answer.text
    assert api.get("/v1/models").json()["items"] == []


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        ([support.HELDOUT[0]] * 20, "Of 20 held-out texts, 19 are copies"),
        ([*support.HELDOUT[:38], *map(str.upper, support.HELDOUT[:3])], "Of 41 held-out texts, 3 are"),
    ],
    ids=["twenty times one text", "in capitals"],
)
def test_copies_are_no_held_out_texts(api, base, tmp_path, texts, counts):
    """422 naming `heldout_path`, with counts and without a text."""
    heldout = support.write_texts(tmp_path / "heldout.jsonl", texts)
    answer = api.post("/v1/models", json=registration(base, heldout_path=str(heldout)))
    assert_problem(answer, 422, "heldout_path")
    assert counts in answer.text
    assert "Street" not in answer.text


def test_held_out_texts_of_another_kind_are_named(api, base, tmp_path):
    """The model is registered, for the requests may be of that kind; its answers carry a warning."""
    retain = support.write_texts(tmp_path / "retain.jsonl", [f"Line {i} is about boats and bread." for i in range(30)])
    answer = api.post("/v1/models", json=registration(base, retain_path=str(retain)))
    assert answer.status_code == 201
    (warning,) = answer.json()["warnings"]
    assert "another language or kind" in warning
    assert api.get("/v1/models/tiny").json()["warnings"] == [warning]
    assert api.post("/v1/models", json=registration(base, name="alike")).json()["warnings"] == []


def test_too_few_held_out_texts_for_an_attack_that_blocks_are_named(api, base):
    """With the number that a job of a single request needs: here of one attack that blocks among eleven."""
    policy = {"attacks": {"sampled": "block"}}
    (warning,) = api.post("/v1/models", json=registration(base, policy=policy)).json()["warnings"]
    assert "at least 439 held-out texts" in warning


def test_a_family_that_nobody_has_tried_is_named(api, base, tmp_path):
    """The model is registered with a warning; of a family in the documentation it has none."""
    folder = tmp_path / "model"
    shutil.copytree(base / "model", folder)
    change_config(folder, model_type="falcon_next-2.5")
    answer = api.post("/v1/models", json=registration(base, path=str(folder))).json()
    assert answer["family"] == "falcon_next-2.5"
    assert ["falcon_next-2.5" in warning for warning in answer["warnings"]] == [True]
    tried = api.post("/v1/models", json=registration(base, name="tried")).json()
    assert (tried["family"], tried["warnings"]) == ("gpt_neox", [])


def test_a_small_overlap_is_taken_and_certified(api, services, base, tmp_path):
    """Up to a hundredth of the held-out texts; the certificate states how many."""
    heldout = support.write_texts(tmp_path / "heldout.jsonl", [*support.people(150, seed=7), support.RETAIN[0]])
    assert api.post("/v1/models", json=registration(base, heldout_path=str(heldout))).status_code == 201
    published(api, services, "a record")
    envelope = api.get("/v1/models/tiny/versions/1/certificate").json()
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert predicate["verification"]["heldout_overlap"] == {"exact": 1, "near": 0}
    assert [set(texts) for texts in predicate["corpora"]] == [{"role", "sha256", "records"}] * 2
