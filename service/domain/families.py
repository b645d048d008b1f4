"""Families of models: which of them were tried, and which cannot be unlearned."""

import re

ROWS = """
    apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe ctrl deepseek_v2 deepseek_v3 diffllama
    doge dots1 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2
    gemma3_text gemma3n_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
    gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3
    jamba jetmoe lfm2 lfm2_moe llama llama4_text mamba mamba2 minicpm3 minimax minimax_m2 ministral mistral mixtral
    mpt nemotron nemotron_h olmo olmo2 olmo3 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma seed_oss smollm3 solar_open stablelm starcoder2
    vaultgemma xglm youtu zamba2
"""  # of docs/families.md
TRIED = frozenset(ROWS.split())
ORDER = "its files keep weights in an order that the merge does not know"
UNFIT = {
    "hrm_text": ORDER,
    "inkling2_loop_text": ORDER,
    "inkling2_text": ORDER,
    "rwkv": "no gradient passes through it",
    "xlstm": "no gradient passes through it",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")


def family_problem(family: object) -> str | None:
    """Why models whose `model_type` says this are refused; None if they are not."""
    if not isinstance(family, str) or not NAME.fullmatch(family):
        return "`model_type` names no family of models."
    return f"models of this type cannot be unlearned yet: {UNFIT[family]}." if family in UNFIT else None


def untried_warning(family: str | None) -> str | None:
    """What to say of a model of this family; None if it was tried, or is not known."""
    if family is None or family in TRIED:
        return None
    return (
        f"Nobody has tried models of the family {family}. The first job says whether its weights can be changed, before"
        " it measures anything. Check the first version yourself."
    )
