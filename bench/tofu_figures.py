"""The figures of TOFU (Maini et al., 2024, arXiv 2401.06121), as open-unlearning (arXiv 2506.12618) defines them.

Likelihoods are of the answer's tokens after the question: p(a | q) ** (1 / |a|), as both say; here without the token
that ends the answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

from worker.engine.attacks.likelihood import mean_of_lowest, strength
from worker.engine.attacks.scores import auc
from worker.engine.data import chunks, encode
from worker.engine.generate import continuations
from worker.engine.metrics.token_scores import TokenScores, token_scores
from worker.engine.probes import as_message, chats
from worker.engine.types import CausalLM, Tokenizer

LEAST_LIKELY = 0.4  # share of the tokens that min-k reads
ANSWER, AT_ONCE = 64, 32  # tokens of an answer; questions asked at once
TINY, LARGEST = 1e-10, 100.0  # the second: of the logarithm of a truth ratio


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, another wording of it, and wrong answers."""

    question: str
    answer: str
    paraphrased: str
    wrong: list[str]


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The token ids of a question, up to where the answer begins."""
    text = as_message(tokenizer, question)
    if text is None:
        return encode(tokenizer, f"Question: {question}\nAnswer:")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_scores(model: CausalLM, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
    """The scores of the tokens of each answer, after its question."""
    rows: list[tuple[list[int], int]] = []
    for question, answer in pairs:
        asked = prompt(tokenizer, question)
        said = answer if chats(tokenizer) else f" {answer}"
        rows.append((asked + list(tokenizer(said, add_special_tokens=False)["input_ids"]), len(asked) - 1))
    scores = token_scores(model, [ids for ids, _ in rows])
    return [TokenScores(*(column[start:] for column in score)) for score, (_, start) in zip(scores, rows, strict=True)]


def likelihoods(model: CausalLM, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The geometric mean of the likelihoods of each answer's tokens."""
    return [float(score.log_p.mean().exp()) for score in answer_scores(model, tokenizer, pairs)]


def truth_ratios(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[float]:
    """How much likelier than the paraphrased answer the wrong ones are, their geometric mean."""
    pairs = [(q.question, answer) for q in questions for answer in (q.paraphrased, *q.wrong)]
    means = iter([score.log_p.mean() for score in answer_scores(model, tokenizer, pairs)])
    ratios = []
    for q in questions:
        true, *wrong = (float(next(means)) for _ in (q.paraphrased, *q.wrong))
        ratios.append(math.exp(min(fmean(wrong) - true, LARGEST)))
    return ratios


def near_one(ratios: Sequence[float]) -> float:
    """Of forgotten questions: 1 where wrong answers are as likely as the true one."""
    return fmean(min(ratio, 1 / (ratio + TINY)) for ratio in ratios)


def truth_over_wrong(ratios: Sequence[float]) -> float:
    """Of other questions: 1 where wrong answers are impossible."""
    return fmean(max(0.0, 1 - ratio) for ratio in ratios)


def forget_quality(ratios: Sequence[float], control: Sequence[float]) -> tuple[float, float]:
    """The Kolmogorov-Smirnov test of the truth ratios against those of the retrained model: p-value and distance."""
    from scipy.stats import ks_2samp

    test = ks_2samp(ratios, control)
    return float(test.pvalue), float(test.statistic)


def chosen(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> float:
    """The share of the true answer in the likelihood of all answers, mean over the questions."""
    pairs = [(q.question, answer) for q in questions for answer in (q.answer, *q.wrong)]
    values = iter(likelihoods(model, tokenizer, pairs))
    shares = []
    for q in questions:
        true, *wrong = (next(values) for _ in (q.answer, *q.wrong))
        shares.append(true / (true + sum(wrong) + TINY))
    return fmean(shares)


def rouge(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> float:
    """ROUGE-L recall of what the model answers greedily, mean over the questions."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    asked = chunks([prompt(tokenizer, q.question) for q in questions], AT_ONCE)
    said = [tokens for part in asked for tokens in continuations(model, part, ANSWER, temperature=0)]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]
    return fmean(scorer.score(q.answer, text)["rougeL"].recall for q, text in zip(questions, texts, strict=True))


def extraction_strength(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> float:
    """Mean Extraction Strength of the answers."""
    scores = answer_scores(model, tokenizer, [(q.question, q.answer) for q in questions])
    return fmean(map(strength, scores))


def membership(
    model: CausalLM, tokenizer: Tokenizer, forgotten: Sequence[Question], unseen: Sequence[Question]
) -> float:
    """AUC of min-k (Shi et al., 2024, arXiv 2310.16789): are forgotten answers likelier than unseen ones?"""
    scores = []
    for group in (forgotten, unseen):
        answers = answer_scores(model, tokenizer, [(q.question, q.answer) for q in group])
        scores.append([mean_of_lowest(score.log_p, LEAST_LIKELY) for score in answers])
    return auc(*scores)


def privacy_leakage(auc_of_model: float, auc_of_control: float) -> float:
    """PrivLeak of MUSE (arXiv 2407.06460), in per cent: under 0 where the model knows more than the retrained one.

    Its AUC is of unseen text over forgotten text, so 1 less than it is here.
    """
    return 100 * (auc_of_control - auc_of_model) / (1 - auc_of_control + TINY)


def utility(
    model: CausalLM,
    tokenizer: Tokenizer,
    retain: Sequence[Question],
    real: Sequence[Sequence[Question]],
) -> float:
    """Harmonic mean of nine figures: likelihood, ROUGE and truth ratio on retained people, real authors, and facts.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        retain: Questions about retained people.
        real: Questions about real authors, and about the world; each has one true answer and some wrong ones.

    Returns:
        A value in 0..1.
    """
    values = [fmean(likelihoods(model, tokenizer, [(q.question, q.answer) for q in retain]))]
    values += [chosen(model, tokenizer, questions) for questions in real]
    for questions in (retain, *real):
        values.append(rouge(model, tokenizer, questions))
        values.append(truth_over_wrong(truth_ratios(model, tokenizer, questions)))
    return harmonic_mean(values)
