"""Loading a model so that it computes what its float32 copy would, in the memory of its stored weights."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.tensor_file import stored_tensors
from worker.engine.errors import InputError
from worker.engine.experts import separate_experts

STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of a model's weights files; float32 if they have several. Whole numbers do not count.

    Args:
        folder: With the weights in safetensors.

    Returns:
        float32, bfloat16 or float16.

    Raises:
        UnreadableWeights: The folder's files are not readable.
    """
    dtypes = {STORED.get(one.dtype) for one in stored_tensors(folder).values() if one.dtype[0] not in "IU"}
    only = dtypes.pop() if len(dtypes) == 1 else None
    return only or torch.float32


def load_model(folder: Path, dtype: torch.dtype, device: torch.device | None = None) -> PreTrainedModel:
    """The model in a folder, for evaluation, with weights of a dtype; on the CPU if no device is named.

    What a family computes from its configuration (a scale, frequencies) is float32 whatever the weights are, as in a
    float32 copy.

    Raises:
        InputError: The files lack weights, for which transformers takes random ones. Buffers it computes.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    missing = info["missing_keys"] & {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing:
        raise InputError(f"model: its files have no weights for {min(missing)}")
    if dtype != torch.float32:
        with init_empty_weights(include_buffers=False):
            shape = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        stored = model.state_dict().keys()
        for name, buffer in shape.named_buffers():
            if name not in stored and buffer.is_floating_point():
                model.get_buffer(name).data = buffer
    separate_experts(model)
    return model.to(device or "cpu").eval()
