"""A small GPT-Neo-style model, with a tokenizer of its own, that knows some people by heart."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoConfig, PretrainedConfig, PreTrainedTokenizerFast

from worker.engine.data import encode, pad_batch
from worker.engine.losses.ascent import cross_entropy
from worker.engine.metrics.memorization import mean_accuracy, token_matches
from worker.engine.types import CausalLM, Tokenizer

VOCABULARY, LENGTH, BATCH = 1536, 128, 16
KNOWN_SHARE = 0.93  # training ends when this share of the tokens is known by heart


def build_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`, with <s> as BOS, EOS and padding."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>")  # noqa: S106


def model_config(vocabulary: int) -> GPTNeoConfig:
    """The shape of the model: 4 layers of 192, no dropout."""
    return GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        num_layers=4,
        num_heads=6,
        intermediate_size=768,
        attention_types=[[["global", "local"], 2]],
        window_size=64,
        max_position_embeddings=256,
        embed_dropout=0.0,
        attention_dropout=0.0,
        resid_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def build(
    folder: Path,
    by_heart: Sequence[str],
    ordinary: Sequence[str],
    progress: Callable[[float, float], None],
    tokenizer: Tokenizer | None = None,
    config: Callable[[int], PretrainedConfig] = model_config,
    questions: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> float:
    """Train until `by_heart` is known by heart, and save; returns the share of its tokens that is known.

    Args:
        folder: The folder to save the model in.
        by_heart: Texts to memorise; one that is there several times is read so much more often.
        ordinary: Other texts; each is read only a few times.
        progress: Called every 25 steps with (fraction of the maximum steps, share of tokens known).
        tokenizer: The tokenizer; None trains one.
        config: Makes the model's configuration, given the size of the vocabulary.
        questions: Questions, each also with its answer, as `by_heart` has it. Training goes on until all are answered.
        seed: What the first weights and the order of the batches are drawn by.
    """
    torch.manual_seed(seed)
    sampler = random.Random(seed)
    tokenizer = tokenizer or build_tokenizer([*by_heart, *ordinary])
    model = AutoModelForCausalLM.from_config(config(len(tokenizer)))
    known = [encode(tokenizer, text)[:LENGTH] for text in by_heart]
    each = [encode(tokenizer, text)[:LENGTH] for text in dict.fromkeys(by_heart)]
    others = [encode(tokenizer, text)[:LENGTH] for text in ordinary]
    steps = 900
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    share = 0.0
    for step in range(steps):
        batch = sampler.sample(known, BATCH - 4) + sampler.sample(others, 4)
        input_ids, mask, labels = pad_batch(batch)
        loss = cross_entropy(model(input_ids=input_ids, attention_mask=mask).logits, labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 24:
            share = mean_accuracy(model, each)
            progress(step / steps, share)
            if share >= KNOWN_SHARE and answers_all(model, tokenizer, questions):
                break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return share


def answers_all(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[tuple[str, str]]) -> bool:
    """Whether greedy decoding continues each question as the text does that begins with it."""
    matches = token_matches(model, [encode(tokenizer, text) for _, text in questions])
    starts = [len(encode(tokenizer, question)) - 1 for question, _ in questions]
    return all(all(row[start:]) for row, start in zip(matches, starts, strict=True))
