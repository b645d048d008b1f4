"""The one file that owns peft: which modules are adapted, and an adapter that leaves the base untouched.

The picture. W is the base weight, which is never written to; c = alpha / r is LoRA's scale:

    W' = W + c (B A - B0 A0)          A [r, k], B [d, r] trained; A0, B0 their frozen start

At the start B A = B0 A0, so logits do not move; at the end the net change is an ordinary rank-2r LoRA. The published
code writes the residual W - c B0 A0 into the base instead, and then evaluates its adapter on a base without that
change. Here peft holds two adapters on each module, `trained` and `anchor` (-B0, A0).

d: output features, k: input features, r: rank
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.errors import UnknownPlugin
from worker.engine.types import AdapterState, CausalLM

# Attention query and value plus the feed-forward linears (paper 4.1), by the names that model families give them, and
# what lets a token into the state of a recurrent layer.
TARGET_SUFFIXES = (
    "q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv",
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out",
    "mlp.c_fc", "mlp.c_proj", "dense_h_to_4h", "dense_4h_to_h", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    "in_proj", "x_proj", "in_proj_qkvz", "in_proj_qkv", "in_proj_z",
)  # fmt: skip
TRAINED, ANCHOR = "trained", "anchor"


def weight_matrix(module: nn.Module) -> Tensor:
    """The module's weight as [d, k]; GPT-2's Conv1D stores the transpose."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def find_targets(model: CausalLM, suffixes: Sequence[str] | None = None) -> list[str]:
    """Full names of the modules to adapt, in model order.

    Args:
        model: A causal language model.
        suffixes: Name endings from the policy. None takes TARGET_SUFFIXES, or every linear module outside the head
            if no module of this model has such a name.

    Returns:
        Module names.

    Raises:
        UnknownPlugin: No linear module has one of these names.
    """
    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    endings = tuple(f".{suffix}" for suffix in suffixes or TARGET_SUFFIXES)
    targets = [name for name in linear if f".{name}".endswith(endings)]
    if not targets and suffixes is None:
        targets = linear
    if not targets:
        raise UnknownPlugin("target_modules: no linear module of this model has such a name")
    return targets


@contextmanager
def _names_as_they_are(model: CausalLM) -> Iterator[None]:
    """Let peft adapt the modules that are named.

    In a family with experts it would take `down_proj` and the like for the stacked weights of all experts.
    """
    settings = vars(model.config)
    before = settings.get("model_type")
    settings["model_type"] = ""
    try:
        yield
    finally:
        settings.pop("model_type", None)
        if before is not None:
            settings["model_type"] = before


def target_weights(model: CausalLM, names: Sequence[str]) -> dict[str, Tensor]:
    """Module name -> weight [d, k]."""
    return {name: weight_matrix(model.get_submodule(name)) for name in names}


class Adapter:
    """Two LoRA adapters of peft on a base model; `detach` removes them and leaves the base unchanged."""

    def __init__(self, model: CausalLM, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> None:
        """Attach to `model`, starting from `factors`: module name -> (A [r, k], B [d, r]), r at most the rank."""
        self.names, self.rank, self.scale = list(factors), max(len(a) for a, _ in factors.values()), scale
        self.model = model
        self._peft = self._attach(self.rank)
        for name, (a, b) in factors.items():
            self._set_factors(name, TRAINED, a, b)
            self._set_factors(name, ANCHOR, a, -b)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{TRAINED}." in name and "lora_" in name)

    def _attach(self, rank: int) -> PeftModel:
        """Put both adapters on the model's modules."""
        names = set(self.names)
        config = LoraConfig(
            r=rank,
            lora_alpha=self.scale * rank,
            lora_dropout=0.0,
            target_modules=sorted(names),
            fan_in_fan_out=any(isinstance(self.model.get_submodule(name), Conv1D) for name in names),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings(), _names_as_they_are(self.model):
            warnings.simplefilter("ignore")  # peft warns of fan_in_fan_out and of tied targets
            peft_model = get_peft_model(self.model, config, adapter_name=TRAINED)
            peft_model.add_adapter(ANCHOR, config)
        peft_model.base_model.set_adapter([TRAINED, ANCHOR])
        return peft_model

    def _factor(self, name: str, adapter: str, letter: str) -> nn.Parameter:
        """The parameter A or B of one module's adapter."""
        layer = self.model.get_submodule(name)
        return getattr(layer, f"lora_{letter}")[adapter].weight  # type: ignore[no-any-return]

    def _set_factors(self, name: str, adapter: str, a: Tensor, b: Tensor) -> None:
        """Copy factors in; a rank below the adapter's (a module smaller than r) leaves zeros."""
        with torch.no_grad():
            for letter, value in (("A", a), ("B", b)):
                parameter = self._factor(name, adapter, letter)
                parameter.zero_()
                parameter[: value.shape[0], : value.shape[1]] = value.to(parameter)

    def set_strength(self, strength: float) -> None:
        """Let the model compute with `strength` times the change; the factors keep their values."""
        for name in self.names:
            layer = self.model.get_submodule(name)
            for adapter in (TRAINED, ANCHOR):
                layer.scaling[adapter] = self.scale * strength

    def parameters(self) -> list[nn.Parameter]:
        """The trained factors."""
        return [self._factor(name, TRAINED, letter) for name in self.names for letter in "AB"]

    def state(self) -> AdapterState:
        """A copy of all factors on the CPU, float32."""
        state: AdapterState = {}
        for name in self.names:
            for letter in "AB":
                trained, anchor = (self._factor(name, adapter, letter) for adapter in (TRAINED, ANCHOR))
                sign = -1.0 if letter == "B" else 1.0
                state[f"{name}|{letter}"] = trained.detach().float().cpu().clone()
                state[f"{name}|{letter}0"] = sign * anchor.detach().float().cpu().clone()
        return state

    def load(self, state: AdapterState) -> None:
        """Restore the factors from a copy made by `state`."""
        for name in self.names:
            self._set_factors(name, TRAINED, state[f"{name}|A"], state[f"{name}|B"])
            self._set_factors(name, ANCHOR, state[f"{name}|A0"], -state[f"{name}|B0"])

    def detach(self) -> CausalLM:
        """Remove the adapters and return the base, whose weights were never written to."""
        return self._peft.unload()
