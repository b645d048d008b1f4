"""Names for types that several modules of the engine share.

mypy reads transformers as `Any`, so it does not check how a model or a tokenizer is used. The names still tell a
reader, and a checker that follows transformers, which class is meant.
"""

from typing import Protocol, TypeAlias

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

CausalLM: TypeAlias = PreTrainedModel
"""A causal language model, as `AutoModelForCausalLM` loads it."""

ModelConfig: TypeAlias = PretrainedConfig
"""A model's configuration, `model.config`."""

Tokenizer: TypeAlias = PreTrainedTokenizerBase
"""A model's tokenizer, as `AutoTokenizer` loads it."""

LinearLayer: TypeAlias = nn.Linear | Conv1D
"""A linear module; GPT-2's Conv1D stores its weight transposed, [k, d]."""

AdapterState: TypeAlias = dict[str, Tensor]
"""A copy of an adapter's factors: "<module>|A", "|B", "|A0", "|B0" -> float32."""

EpochEntry: TypeAlias = dict[str, float]
"""One epoch of a run's history: epoch, steps, el, ma, loss, perplexity, seconds, ... ; a plain mapping, so that other
tools can write it down and draw it. `met` is a bool, `epoch` and `steps` are whole numbers."""


class GradientContext(Protocol):
    """What the engine uses of the context that torch gives to an autograd function's forward and backward."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
