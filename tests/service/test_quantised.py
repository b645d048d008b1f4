"""Weights as whole multiples of a scale, and the folders that hold them."""

import json
import shutil

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from service.low_rank import decode, encode
from service.quantised import SCHEMES, Scheme
from service.quantised_files import write_quantised, write_rounded
from service.tensor_file import TensorFile
from service.weight_files import UnreadableWeights
from tests import support

DTYPES = ["F32", "F16", "BF16"]


def numbers(shape, dtype: str, seed: int = 0):
    """Weights as they are stored, some rows of zeros and of very small numbers."""
    values = np.random.default_rng(seed).normal(0, 0.05, shape).astype("f4")
    values[0] = 0
    values[-1] *= 1e-30
    return encode(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEMES)
def test_numbers_are_packed_as_the_stock_library_unpacks_them(name, dtype):
    """compressed-tensors reads back the whole numbers that we pack, and packs the same words."""
    scheme, bits = SCHEMES[name], numbers((7, 96), dtype)
    words, scales = scheme.packed(bits, dtype)
    whole = unpack_from_int32(torch.from_numpy(words.copy()), scheme.bits, torch.Size(bits.shape))
    assert torch.equal(pack_to_int32(whole, scheme.bits), torch.from_numpy(words.copy()))
    of_groups = decode(scales, dtype)[..., None]
    values = whole.numpy().astype("f4").reshape(7, scheme.groups(96), -1) * of_groups
    unpacked = scheme.unpacked(words, scales, dtype, 96)
    np.testing.assert_array_equal(unpacked, encode(values.reshape(7, 96), dtype))


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SCHEMES)), st.sampled_from(DTYPES), st.integers(1, 5))
def test_a_rounded_number_is_within_half_a_scale(seed, name, dtype, groups):
    """But for the rounding of the scale, and of the result, to the dtype; zeros stay zeros."""
    scheme, width = SCHEMES[name], 32 * groups
    bits = numbers((4, width), dtype, seed)
    words, scales = scheme.packed(bits, dtype)
    before, after = (decode(one, dtype) for one in (bits, scheme.unpacked(words, scales, dtype, width)))
    of_numbers = np.repeat(decode(scales, dtype), width // scheme.groups(width), axis=1)
    slack = {"F32": 1e-5, "F16": 2e-2, "BF16": 0.15}[dtype] * (scheme.most + 1) / 8
    assert (np.abs(before - after) <= of_numbers * (0.5 + slack) + 1e-7).all()
    assert not after[0].any()


def test_columns_that_fill_no_word_are_padded():
    """A row of five 8-bit numbers takes two words; its own numbers come back."""
    scheme, bits = Scheme(8, None), numbers((3, 5), "F32")
    words, scales = scheme.packed(bits, "F32")
    assert words.shape == (3, 2)
    assert np.abs(scheme.unpacked(words, scales, "F32", 5) - bits).max() <= decode(scales, "F32").max()


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def folder(request, tmp_path_factory):
    """A model in several files."""
    path = tmp_path_factory.mktemp("model") / "model"
    support.random_model("llama", gain=1.0).to(request.param).save_pretrained(path, max_shard_size="25KB")
    (path / "README.md").write_text("a card")
    return path


KEPT = ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_keeps_everything_but_the_rounded_weights(folder, tmp_path, scheme):
    """Other tensors and files have their bytes, the index names every tensor, and a second copy is the same."""
    files = write_quantised(folder, tmp_path / "copy", scheme, KEPT)
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    total = 0
    for name in set(index["weight_map"].values()):
        before, after = load_file(folder / name), load_file(tmp_path / "copy" / name)
        assert after.keys() == {tensor for tensor, file in index["weight_map"].items() if file == name}
        for tensor, value in before.items():
            rounded = value.dim() == 2 and tensor.removesuffix(".weight") not in KEPT
            assert (tensor not in after) == (rounded) == (f"{tensor}_packed" in after)
            assert rounded or torch.equal(after[tensor], value)
        total += sum(value.nbytes for value in after.values())
    assert index["metadata"]["total_size"] == total
    assert files.keys() == {*index["weight_map"].values(), "config.json", "model.safetensors.index.json"}
    assert (tmp_path / "copy" / "README.md").read_text() == "a card"
    assert write_quantised(folder, tmp_path / "again", scheme, KEPT) == files


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_stock_transformers_loads_is_what_is_tested(folder, tmp_path, scheme):
    """The logits of the copy are those of the rounded model, to the bit, and not those of the model."""
    write_quantised(folder, tmp_path / "copy", scheme, KEPT)
    write_rounded(folder, tmp_path / "copy", tmp_path / "rounded", scheme)
    input_ids = torch.arange(2, 20)[None]
    copied, rounded, plain = (
        AutoModelForCausalLM.from_pretrained(path)(input_ids=input_ids).logits
        for path in (tmp_path / "copy", tmp_path / "rounded", folder)
    )
    assert torch.equal(copied, rounded)
    assert not torch.equal(plain, rounded)


def test_a_matrix_that_the_scheme_does_not_fit_is_named(folder, tmp_path):
    """A row of 33 numbers has no whole groups of 32; a matrix of whole numbers has no scale."""
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    for value in (torch.ones(2, 33), torch.ones(2, 32, dtype=torch.int32)):
        save_file({"odd.weight": value}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UnreadableWeights, match=r"odd\.weight"):
            write_quantised(tmp_path / "model", tmp_path / f"copy {value.dtype}", "int4", [])


def test_every_tensor_lies_at_a_multiple_of_its_numbers_size(folder, tmp_path):
    """Loaders view the file's bytes as numbers of that size."""
    write_quantised(folder, tmp_path / "copy", "int4", KEPT)
    sizes = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2}
    for path in (tmp_path / "copy").glob("*.safetensors"):
        file = TensorFile(path)
        assert len(file.header) % 8 == 0
        assert all(one.start % sizes[one.dtype] == 0 for one in file.tensors.values())
