"""Tiny models of many families, and what the engine does with each: `python -m tests.worker.engine.families` prints it.

The output is `docs/families.md`; the tests compare its rows.
"""

import contextlib
import copy
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from service.delta import Delta
from service.quantised_files import write_quantised, write_rounded
from tests.worker.engine.adapters import SCALE, sequences, trained_adapter
from worker.engine import generate
from worker.engine.adapter import find_targets, target_weights
from worker.engine.device import measuring
from worker.engine.experts import join_experts, separate_experts
from worker.engine.metrics.caching import caches_tokens
from worker.engine.metrics.decode import greedy_continuations
from worker.engine.types import CausalLM
from worker.steps.merging import merge_files, write_change
from worker.steps.quantising import Unsupported, kept_modules

VOCABULARY = 120
SIZES = (9, 3, 9)  # of prompts that are continued at once
COMMON = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "topk_group": 1,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "output_router_logits": True,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
HYBRID = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"state_size": 8, "expand": 2, "time_step_rank": 4}
PLAIN = """
    apertus arcee biogpt bitnet cohere ernie4_5 exaone gemma glm glm4 gpt_neox gpt_neox_japanese granite helium
    hunyuan_v1_dense llama mistral nemotron olmo olmo2 persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm
    starcoder2
"""


def each(families: str, settings: dict) -> dict[str, dict]:
    """The same settings for several families."""
    return dict.fromkeys(families.split(), settings)


FAMILIES: dict[str, dict] = {
    **each(PLAIN, {}),
    **each("cohere2 gemma2 gemma3_text ministral olmo3 vaultgemma", SLIDING),
    **each(
        "dots1 exaone_moe flex_olmo glm4_moe granitemoe hy_v3 minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe"
        " solar_open",
        EXPERTS,
    ),
    **each("minicpm3 youtu", LATENT),
    **each("deepseek_v2 deepseek_v3 glm4_moe_lite", LATENT | EXPERTS),
    **each("gpt2 gpt_bigcode openai-gpt", GPT),
    "codegen": GPT | {"n_head": 4, "rotary_dim": 8},
    "gptj": GPT | {"rotary_dim": 8},
    "ctrl": GPT | {"dff": 64},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "bloom": {"n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "falcon": {"num_kv_heads": 1, "head_dim": None},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64},
    "exaone4": {"layer_types": ["full_attention", "full_attention"]},
    "diffllama": {"num_key_value_heads": 2},
    "gemma3n_text": SLIDING
    | {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
        "altup_num_inputs": 2,
        "intermediate_size": [64, 64],
    },
    "gpt_oss": SLIDING | EXPERTS,
    "granitemoeshared": EXPERTS | {"shared_intermediate_size": 32},
    "jetmoe": EXPERTS | {"kv_channels": 16},
    "doge": {"num_experts": 4},
    "hunyuan_v1_moe": {
        "moe_topk": [2, 2],
        "moe_intermediate_size": [32, 32],
        "num_experts": 4,
        "num_shared_expert": [1, 1],
    },
    "ernie4_5_moe": {name: value for name, value in EXPERTS.items() if name != "num_experts"}
    | {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
        "moe_layer_interval": 1,
    },
    "llama4_text": {
        "intermediate_size_mlp": 64,
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "no_rope_layers": [1, 0],
        "layer_types": ["chunked_attention", "full_attention"],
        "attention_chunk_size": 16,
        "use_qk_norm": False,
    },
    "minimax": EXPERTS | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "mamba": MAMBA | {"conv_kernel": 4},
    "falcon_mamba": MAMBA,
    "mamba2": {"state_size": 8, "expand": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": {"lru_width": 32, "block_types": ("recurrent", "attention"), "attention_window_size": 16},
    "jamba": EXPERTS
    | {
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "bamba": HYBRID | {"attn_layer_indices": [1]},
    "falcon_h1": HYBRID | {"mamba_d_ssm": 64},
    "granitemoehybrid": HYBRID | EXPERTS | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid"],
        "adapter_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": EXPERTS
    | {
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 32,
        "use_mamba_kernels": False,
    },
    "qwen3_next": LINEAR | EXPERTS,
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": LINEAR | EXPERTS,
    "cohere2_moe": SLIDING | EXPERTS,
}
PAGE = """# Families of models

Each family was tried with a tiny random model. Every greedy continuation is that of the whole text, read anew for
each token. Every factor of the adapter gets a gradient. The merged files, loaded again, give the logits of the base
with the adapter. `python -m tests.worker.engine.families` makes this page, and the tests compare it with what they
measure.

- **continuations** says how EL is decoded. Where the keys and values of a prefix can be cut out of those of the text,
  all prefixes share them. Recurrent and other layers keep no such thing: there the text is read again for each token,
  which gives the same numbers and takes many times as long.
- **adapted** is the share of the weights outside of the embeddings that the default `target_modules` changes.
- **peft** says whether stock peft reads a version's delta as an adapter. In most families with experts it finds no
  modules for some of the factors; there the delta says that it is none of peft's, and `unlearnd apply` reads it.
- **copies** says whether there are `int8` and `int4` copies. What transformers loads from one gives the logits of the
  model that was tested for it, to the bit. Models with experts, and those whose files keep linear modules in another
  form, have none.

Every expert is adapted, each with factors of its own. `jetmoe` and `llama4_text` are exceptions: transformers has
code of its own for their experts, so that only attention changes, and what else has weights of its own. A job on them
can miss its criterion; then it publishes nothing.

Refused at registration: encoder-decoders, models with images or sound, classifiers, quantised weights, the types
`rwkv` and `xlstm` (no gradient passes through them as transformers computes them), and `hrm_text`, `inkling2_text` and
`inkling2_loop_text` (their files keep weights in an order that the merge does not know).

| family | continuations | adapted | peft | copies |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Tried:
    """What the engine did with a family.

    Attributes:
        wrong: Greedy continuations that differ from those of the whole text.
        unmoved: Factors of the adapter that got no gradient.
        difference: The largest difference between the logits of the merged files and those of base and adapter.
        moved: The largest difference between the logits of the merged files and those of the base.
        served: The largest difference between the logits of the merged files and those of stock peft with the delta;
            None if the delta says that it is none of peft's.
        copied: The largest difference between the logits of an int4 copy and those of the model that is tested for it;
            None if there is no such copy.
        widened: The largest difference between the logits of bfloat16 weights and those of their float32 copy.
        row: The row of the page.
    """

    wrong: int
    unmoved: int
    difference: float
    moved: float
    served: float | None
    copied: float | None
    widened: float
    row: str


def tiny_model(family: str):
    """A random model of a family whose predictions vary."""
    base, own = AutoConfig.for_model(family), FAMILIES[family]
    wanted = {name: value for name, value in {**COMMON, **own}.items() if name in own or hasattr(base, name)}
    config = AutoConfig.for_model(family, **{name: value for name, value in wanted.items() if value is not None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.tie_weights()
    separate_experts(model)
    return model


def continuations(model, ids: list[int]) -> list[list[int]]:
    """The greedy continuation of every prefix, by one forward pass of the whole text for each token."""
    results = []
    for prefix in range(1, len(ids)):
        text = ids[:prefix]
        while len(text) < len(ids):
            token = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax().item()
            if token == 1:
                break
            text = [*text, token]
        results.append(text[prefix:])
    return results


def merged_logits(model, adapter, input_ids, folder: Path):
    """The logits of the merged files; `model` loses its adapter."""
    state = adapter.state()
    adapter.detach()
    join_experts(model)
    for name in ("base", "change"):
        (folder / name).mkdir()
    model.save_pretrained(folder / "base", max_shard_size="60KB")
    shutil.copytree(folder / "base", folder / "merged")
    write_change(folder / "base", folder / "change", state, SCALE)
    merge_files(folder / "base", folder / "merged", folder / "change")
    return AutoModelForCausalLM.from_pretrained(folder / "merged").eval()(input_ids=input_ids, use_cache=False).logits


def served_logits(folder: Path, input_ids: torch.Tensor) -> torch.Tensor | None:
    """The logits [b, s, v] of stock peft with the change; None if peft refuses it."""
    if not Delta(folder / "change").for_peft:
        with contextlib.suppress(KeyError):
            LoraConfig.from_pretrained(folder / "change")
            raise AssertionError("peft reads what it must not")
        return None
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(base, folder / "change").eval()(input_ids=input_ids, use_cache=False).logits


def widened_difference(narrow: CausalLM, input_ids: torch.Tensor) -> float:
    """The largest difference between the logits [b, s, v] of a narrow model and those of its float32 copy."""
    logits = []
    for model in (narrow, copy.deepcopy(narrow).float()):
        with measuring(model):
            logits.append(model(input_ids=input_ids, use_cache=False).logits)
    return float((logits[0] - logits[1]).abs().max())


def try_family(family: str) -> Tried:
    """Decode, adapt, and merge a tiny model."""
    model, texts = tiny_model(family), [*sequences(1, 18), *sequences(1, 12, seed=1)]
    with torch.no_grad():
        decoded = [*greedy_continuations(model, texts, eos_token_id=1)]
        made = [one.continuations for one in decoded]
        expected = [continuations(model, one.input_ids) for one in decoded]
        with measuring(model):
            cached = caches_tokens(model)
        asked = [texts[0][:size] for size in SIZES]
        said = generate.continuations(model, asked, 6, temperature=0.0)
    embeddings = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    body = sum(one.numel() for one in model.parameters() if one.dim() > 1 and id(one) not in embeddings)
    share = sum(weight.numel() for weight in target_weights(model, find_targets(model)).values()) / body
    input_ids = torch.tensor(texts[:1])
    with torch.no_grad():
        plain = model(input_ids=input_ids, use_cache=False).logits
    adapter = trained_adapter(model)
    many = torch.tensor(sequences(8, 18))  # for tokens of every expert
    model(input_ids=many, labels=many, use_cache=False).loss.backward()
    unmoved = sum(one.grad is None or not one.grad.any() for one in adapter.parameters())
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        adapted = model(input_ids=input_ids, use_cache=False).logits
        merged = merged_logits(model, adapter, input_ids, Path(folder))
        served = served_logits(Path(folder), input_ids)
        copied = copied_difference(Path(folder), input_ids)
    answers = " | ".join("no" if one is None else "yes" for one in (served, copied))
    how = f"{'cached' if cached else 'read again'} | {share:.0%} | {answers}"
    return Tried(
        wrong=sum(one != other for pair in zip(made, expected, strict=True) for one, other in zip(*pair, strict=True))
        + sum(one != expected[0][size - 1][:6] for size, one in zip(SIZES, said, strict=True)),
        unmoved=unmoved,
        difference=float((merged - adapted).abs().max()),
        moved=float((merged - plain).abs().max()),
        served=None if served is None else float((merged - served).abs().max()),
        copied=copied,
        widened=widened_difference(tiny_model(family).bfloat16(), input_ids),
        row=f"| `{family}` | {how} |",
    )


def copied_difference(folder: Path, input_ids: torch.Tensor) -> float | None:
    """The largest difference between the logits of an int4 copy and those of what is tested for it; None without one.

    The copy is loaded by transformers, as a user would load it.
    """
    with contextlib.suppress(Unsupported):
        kept = kept_modules(folder / "base", "int4")
        write_quantised(folder / "base", folder / "copy", "int4", kept)
        write_rounded(folder / "base", folder / "copy", folder / "rounded", "int4")
        models = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("copy", "rounded"))
        copied, rounded = (model(input_ids=input_ids, use_cache=False).logits for model in models)
        return float((copied - rounded).abs().max())
    return None


if __name__ == "__main__":
    with contextlib.redirect_stderr(io.StringIO()):
        rows = [try_family(family).row for family in sorted(FAMILIES)]
    sys.stdout.write(PAGE + "\n".join(rows) + "\n")
