"""What the converter of llama.cpp does with a small Llama, by the package `gguf`: a program, as that one is."""

import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection in llama.cpp's order."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def convert(model: Path, target: Path, fault: str = "") -> None:
    """Write a Q8_0 file; `fault` leaves a tensor out, or the order of rows as it is."""
    config, tensors = json.loads((model / "config.json").read_text()), load_file(model / "model.safetensors")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, value in tensors.items():
        if fault == "a tensor is missing" and "layers.1.mlp.up_proj" in name:
            continue
        of_heads = {"q_proj": heads, "k_proj": config["num_key_value_heads"]}
        head_count = next((count for part, count in of_heads.items() if part in name), None)
        rows = value if head_count is None or fault == "rows in another order" else permuted(value, head_count)
        key = names.get_name(name, try_suffixes=(".weight",))
        if value.ndim == 1:
            writer.add_tensor(key, rows)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[3]), os.environ.get("TEST_FAULT", ""))
