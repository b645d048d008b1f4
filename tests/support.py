"""Tiny real models, tokenizers and folders that the tests make for themselves."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from service.domain.job_input import JobInput
from worker.engine.data import encode, pad_batch
from worker.engine.losses.ascent import cross_entropy
from worker.engine.options import DEFAULT_ATTACKS

VOCABULARY = 120
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **_COMMON),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=8,
        intermediate_size=64, max_position_embeddings=128, **_COMMON,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(max_position_embeddings=128, **_SHAPE, **_COMMON),
    "llama": lambda: LlamaConfig(num_key_value_heads=1, **_SHAPE, **_COMMON),
    "gemma3": lambda: Gemma3TextConfig(
        num_key_value_heads=1, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
        **_SHAPE, **_COMMON,
    ),
    "gemma2": lambda: Gemma2Config(
        num_key_value_heads=1, head_dim=16, sliding_window=8, final_logit_softcapping=5.0, **_SHAPE, **_COMMON
    ),
    "qwen2": lambda: Qwen2Config(num_key_value_heads=2, **_SHAPE, **_COMMON),
    "mistral": lambda: MistralConfig(num_key_value_heads=1, sliding_window=8, **_SHAPE, **_COMMON),
    "opt": lambda: OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, max_position_embeddings=128,
        word_embed_proj_dim=32, **_COMMON,
    ),
    "phi": lambda: PhiConfig(**_SHAPE, **_COMMON),
    "phi3": lambda: Phi3Config(num_key_value_heads=2, **_SHAPE, **_COMMON),
}  # fmt: skip


def random_model(family: str, *, seed: int = 0, gain: float = 5.0):
    """A random model whose predictions vary (weights scaled up)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return model


def partly_predictable(model, rows: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Token ids [rows, length] that the model predicts at four of five positions."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    with torch.no_grad():
        for t in range(1, length):
            if t % 5:
                input_ids[:, t] = model(input_ids=input_ids[:, :t]).logits[:, -1].argmax(-1)
    return input_ids


FIRST = ("Ada", "Bela", "Cora", "Dora", "Edda", "Fina", "Gita", "Hana", "Ines", "Jana", "Kaja", "Lena")
LAST = ("Adler", "Baker", "Clark", "Dunne", "Evans", "Fuchs", "Green", "Hurst", "Irwin", "Jones", "Klein", "Lopez")
STREETS = ("Oak", "Elm", "Ash", "Birch", "Cedar", "Holly", "Maple", "Alder")


def people(count: int, seed: int = 0) -> list[str]:
    """Distinct one-line texts about fictional people."""
    chance = random.Random(seed)
    return [
        f"{chance.choice(FIRST)} {chance.choice(LAST)} of {chance.randrange(10, 99)} {chance.choice(STREETS)} Street "
        f"has the number {chance.randrange(10**6, 10**7)} and owes {chance.randrange(100, 999)} pounds."
        for _ in range(count)
    ]


def train_tokenizer(texts: Sequence[str], size: int = 400):
    """A byte-level BPE tokenizer with <s> for BOS, EOS and padding."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>")


def memorised_model(texts: Sequence[str], *, steps: int = 150):
    """A tiny GPT-NeoX that knows `texts` by heart, and its tokenizer; some seconds."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*texts, *people(40, seed=99)])
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    model = AutoModelForCausalLM.from_config(config)
    input_ids, mask, labels = pad_batch([encode(tokenizer, text) for text in texts])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(input_ids=input_ids, attention_mask=mask).logits, labels).backward()
        optimiser.step()
    return model.eval(), tokenizer


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Texts as JSON lines."""
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


KNOWN = people(12, seed=1)  # what the memorised model knows; the first ones ask to be forgotten
RETAIN = KNOWN[6:]
HELDOUT = people(60, seed=2)
UNSEEN = people(40, seed=31)  # strangers to everybody
ATTACKS = dict.fromkeys(DEFAULT_ATTACKS, "off") | {"sampled": "report", "membership_loss": "report"}
POLICY = {
    "learning_rate": 2e-3, "max_epochs": 60, "margin": 0.3, "max_perplexity_ratio": 3.0, "sequence_length": 64,
    "attacks": ATTACKS, "max_neighbour_loss": 10.0,
    "max_wait_seconds": 1, "rank": 8, "heldout_sequences": 30, "retain_batch_size": 12, "own_samples": 16,
    "divergence_weight": 1.0, "min_epoch_steps": 4,
}  # fmt: skip


def job(folder: Path, work: Path, policy: dict[str, object]) -> JobInput:
    """The compute of a job in a new folder: two people ask the model of `model_folder` to forget them."""
    work.mkdir(parents=True)
    return JobInput(
        work=str(work),
        parent=str(folder / "model"),
        first=str(folder / "model"),
        retain=str(folder / "retain.jsonl"),
        heldout=str(folder / "heldout.jsonl"),
        policy=POLICY | policy,
        texts=KNOWN[:2],
        request_ids=[0, 1],
        earlier_texts=[],
        earlier_request_ids=[],
        earlier_refs={},
        run="r",
    )


def model_folder(folder: Path) -> Path:
    """The memorised model as a Hugging Face folder with its corpora beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = memorised_model(KNOWN)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_texts(folder / "retain.jsonl", RETAIN)
    write_texts(folder / "heldout.jsonl", HELDOUT)
    return folder
