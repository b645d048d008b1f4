"""The one file that owns peft: which modules are adapted, and an adapter that leaves the base untouched.

The picture. W is the base weight, never written to; c = alpha / r is LoRA's scale:

    W' = W + c (B A - B0 A0)          A [r, k], B [d, r] trained; A0, B0 their frozen start

At the start B A = B0 A0, so logits do not move; at the end the net change is an ordinary rank-2r LoRA. The
published code writes the residual W - c B0 A0 into the base instead, and then evaluates its adapter on a base
that was not changed so. Here peft holds two adapters on each module, `trained` and `anchor` (-B0, A0).

d: output features, k: input features, r: rank
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.errors import UnknownPlugin

# Attention query and value plus the feed-forward linears (paper 4.1), by the names families give them.
TARGET_SUFFIXES = (
    "q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv",
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out",
    "mlp.c_fc", "mlp.c_proj", "dense_h_to_4h", "dense_4h_to_h",
)  # fmt: skip
TRAINED, ANCHOR = "trained", "anchor"
State = dict[str, Tensor]  # "<module>|A", "|B", "|A0", "|B0" -> float32


def weight_matrix(module: nn.Module) -> Tensor:
    """The module's weight as [d, k]; GPT-2's Conv1D stores the transpose."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def find_targets(model: Any, suffixes: Sequence[str] | None = None) -> list[str]:
    """Full names of the modules to adapt, in model order.

    Args:
        model: A causal language model.
        suffixes: Name endings from the policy; None takes the table above, and every linear module outside
            the head where the table knows none.

    Returns:
        Module names.

    Raises:
        UnknownPlugin: No linear module has one of these names.
    """
    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]  # fmt: skip
    wanted = tuple(f".{suffix}" for suffix in suffixes or TARGET_SUFFIXES)
    found = [name for name in linear if f".{name}".endswith(wanted)]
    if not found and suffixes is None:
        found = linear
    if not found:
        raise UnknownPlugin("target_modules: no linear module of this model has such a name")
    return found


def target_weights(model: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Module name -> weight [d, k]."""
    return {name: weight_matrix(model.get_submodule(name)) for name in names}


class Adapter:
    """Two LoRA adapters of peft on a base model; `detach` gives the base back as it was."""

    def __init__(self, model: Any, factors: Mapping[str, tuple[Tensor, Tensor]], rank: int, scale: float) -> None:
        """Attach to `model`, starting from `factors`: module name -> (A [r, k], B [d, r])."""
        self.names, self.scale = list(factors), scale
        self.model = model
        names = set(self.names)
        config = LoraConfig(
            r=rank,
            lora_alpha=scale * rank,
            lora_dropout=0.0,
            target_modules=sorted(names),
            fan_in_fan_out=any(isinstance(model.get_submodule(n), Conv1D) for n in names),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of fan_in_fan_out and of tied targets
            self._peft = get_peft_model(model, config, adapter_name=TRAINED)
            self._peft.add_adapter(ANCHOR, config)
        self._peft.base_model.set_adapter([TRAINED, ANCHOR])
        for name, (a, b) in factors.items():
            self._write(name, TRAINED, a, b)
            self._write(name, ANCHOR, a, -b)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{TRAINED}." in name and "lora_" in name)

    def _factor(self, name: str, adapter: str, letter: str) -> nn.Parameter:
        layer = self.model.get_submodule(name)
        return getattr(layer, f"lora_{letter}")[adapter].weight  # type: ignore[no-any-return]

    def _write(self, name: str, adapter: str, a: Tensor, b: Tensor) -> None:
        """Copy factors in; a rank below the adapter's (a module smaller than r) leaves zeros."""
        with torch.no_grad():
            for letter, value in (("A", a), ("B", b)):
                target = self._factor(name, adapter, letter)
                target.zero_()
                target[: value.shape[0], : value.shape[1]] = value.to(target)

    def apply_share(self, strength: float) -> None:
        """Let the model compute with `strength` times the change, the factors staying as they are."""
        for name in self.names:
            layer = self.model.get_submodule(name)
            for adapter in (TRAINED, ANCHOR):
                layer.scaling[adapter] = self.scale * strength

    def parameters(self) -> list[nn.Parameter]:
        """The trained factors."""
        return [self._factor(name, TRAINED, letter) for name in self.names for letter in "AB"]

    def state(self) -> State:
        """A copy of all factors on the CPU, float32."""
        found: State = {}
        for name in self.names:
            for letter in "AB":
                trained, anchor = (self._factor(name, which, letter) for which in (TRAINED, ANCHOR))
                sign = -1.0 if letter == "B" else 1.0
                found[f"{name}|{letter}"] = trained.detach().float().cpu().clone()
                found[f"{name}|{letter}0"] = sign * anchor.detach().float().cpu().clone()
        return found

    def load(self, state: State) -> None:
        """Put a copy made by `state` back."""
        for name in self.names:
            self._write(name, TRAINED, state[f"{name}|A"], state[f"{name}|B"])
            self._write(name, ANCHOR, state[f"{name}|A0"], -state[f"{name}|B0"])

    def detach(self) -> Any:
        """Take the adapters off; the model is the base again, its weights never having been written to."""
        return self._peft.unload()
