"""The paper's texts in their roles, and a model with the measurements on it that several runs share."""

import copy
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.attacked import attacked
from bench.data import read
from bench.general import dialogue_f1, lambada_accuracy
from worker.engine.attacks import Subject
from worker.engine.criterion import Threshold, thresholds_for
from worker.engine.data import encode, first_windows
from worker.engine.device import resolve_device
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import greedy_decodings
from worker.engine.metrics.decode import GreedyDecoding
from worker.engine.metrics.memorization import token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.types import CausalLM, Tokenizer

LENGTH, HELDOUT, PILE_PERPLEXITY, WATCHED = 200, 64, 48, 16


def forget_sequences(tokenizer: Tokenizer, data: Path, count: int, length: int) -> Tensor:
    """[count, length] of the forget set 32_0; a text that is shorter is filled up with the next one."""
    texts = read(data / "tdec" / "lm_extraction_32_0.csv")
    ids = [encode(tokenizer, a + b)[:length] for a, b in zip(texts, texts[1:] + texts[:1], strict=True)]
    return torch.tensor(ids[:count])


@dataclass(frozen=True)
class Texts:
    """The texts of the data folder, by role."""

    wikitext: list[str]
    heldout: list[str]
    perplexity: list[str]
    domain: list[str]
    data: Path

    @classmethod
    def read(cls, data: Path) -> "Texts":
        """Split the Pile texts in three. The file is ordered by corpus, so the texts are shuffled first."""
        pile = read(data / "general" / "pile.csv")
        random.Random(0).shuffle(pile)
        return cls(read(data / "general" / "wikitext.csv"), pile[:200], pile[200:400], pile[400:], data)

    def forget(self, name: str) -> list[str]:
        """A forget set; `128_0/2` is the third task of 32 of the continual set."""
        file, _, task = name.partition("/")
        texts = read(self.data / "tdec" / f"lm_extraction_{file}.csv")
        return texts[32 * int(task) : 32 * int(task) + 32] if task else texts


class Bench:
    """A model, the texts, and the measurements that are made on it once."""

    def __init__(self, path: str, texts: Texts, *, exact: bool) -> None:
        """Load the model; `exact` also measures EL, which decodes many thousand tokens."""
        self.path, self.texts, self.exact = path, texts, exact
        self.attacks: list[str] = []
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.device = resolve_device()
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").to(self.device).eval()
        pile = first_windows(self.tokenizer, texts.perplexity, LENGTH, PILE_PERPLEXITY + WATCHED)
        self.pile, self.watched = pile[:PILE_PERPLEXITY], pile[PILE_PERPLEXITY:]  # a run looks at others
        self.wiki = first_windows(self.tokenizer, texts.wikitext[::-1], LENGTH, PILE_PERPLEXITY)

    @cached_property
    def unseen(self) -> list[list[int]]:
        """Held-out windows: they set the thresholds, and attacks compare with them."""
        return first_windows(self.tokenizer, self.texts.heldout, LENGTH, HELDOUT)

    def attacked(self, model: CausalLM, data: Prepared) -> dict[str, float]:
        """What attacks find on a model: the forget set beside held-out windows."""
        return attacked(Subject(model, self.tokenizer, data.forget.sequences, self.unseen, data.retain), self.attacks)

    @cached_property
    def heldout(self) -> list[GreedyDecoding]:
        """Decodings of held-out text by this model; without `exact` a continuation stops at its first mismatch."""
        if self.exact:
            return [*greedy_decodings(self.model, self.unseen, 10, Options())]
        matches = token_matches(self.model, self.unseen)
        return [_matching_decoding(ids, row) for ids, row in zip(self.unseen, matches, strict=True)]

    def thresholds(self, sequences: list[list[int]]) -> list[Threshold]:
        """The thresholds of sequences, from held-out text on this model."""
        return thresholds_for(self.heldout, sequences, 10)

    def with_model(self, model: CausalLM) -> "Bench":
        """The same bench on another model, which gets thresholds of its own."""
        other = copy.copy(self)
        other.model = model
        vars(other).pop("heldout", None)
        return other

    def abilities(self, model: CausalLM, *, everything: bool = True) -> dict[str, float]:
        """Perplexities, and with `everything` LAMBADA accuracy and dialogue F1."""
        folder = self.texts.data / "general"
        values = {"pile": perplexity(model, self.pile), "wikitext": perplexity(model, self.wiki)}
        if everything:
            values["lambada"] = lambada_accuracy(model, self.tokenizer, folder / "lambada.csv")
            values["dialogue"] = dialogue_f1(model, self.tokenizer, folder)
        return values

    def prepare(self, names: list[str], domain: float) -> Prepared:
        """The sets of a run: the last name is forgotten, the ones before it were forgotten earlier."""
        sets = []
        for index, name in enumerate(names):
            sequences = [encode(self.tokenizer, text)[:LENGTH] for text in self.texts.forget(name)]
            sets.append(ForgetSet(sequences, list(range(100 * index, 100 * index + len(sequences)))))
        earlier = ForgetSet([], [])
        for forget_set in sets[:-1]:
            earlier = earlier + forget_set
        wiki = self.texts.wikitext[:400]
        count = round(len(wiki) * domain / (1 - domain)) if domain < 1 else len(wiki)
        retain = wiki + self.texts.domain[:count] if domain < 1 else self.texts.domain
        windows = first_windows(self.tokenizer, random.Random(1).sample(retain, len(retain)), LENGTH, 64)
        return Prepared(sets[-1], earlier, retain, [], self.pile, windows, windows, [windows], 0, 0)


def _matching_decoding(input_ids: list[int], matches: list[bool]) -> GreedyDecoding:
    """A decoding from the teacher-forced pass alone: each continuation reaches as far as it matches."""
    continuations: list[list[int]] = []
    for token, matched in zip(input_ids[:0:-1], matches[::-1], strict=True):
        following = continuations[-1] if continuations else []
        continuations.append([token, *following] if matched else [])
    predicted = [x if m else -1 for x, m in zip(input_ids[1:], matches, strict=True)]
    return GreedyDecoding(input_ids, predicted, continuations[::-1])
