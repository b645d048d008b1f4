"""`unlearnd plan`: what a job on a model needs in each stage, and with which settings it fits."""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from service.weight_files import UnreadableWeights
from worker.engine.errors import EngineError
from worker.engine.options import Options
from worker.engine.plan import Plan
from worker.steps.memory import Stored

GB = 1e9


def main() -> int:
    """Print the plan; 0 if the job fits, 1 if it does not, 2 if the model cannot be planned."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()  # it warns of configurations, which this is not about
    policy = json.loads(arguments.policy.read_bytes()) if arguments.policy else {}
    devices = arguments.devices or max(torch.cuda.device_count(), 1)
    try:
        stored = Stored.read(arguments.model, Options.from_mapping({"adaptive": True, **policy}))
        plan = stored.plan(devices, arguments.device_memory)
    except (EngineError, UnreadableWeights, OSError, ValueError) as error:
        sys.stderr.write(f"{arguments.model}: no plan: {error}\n")
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps(as_dict(stored, plan)) + "\n")
    else:
        _print(stored, plan)
    return 0 if plan.fits else 1


def as_dict(stored: Stored, plan: Plan) -> dict[str, object]:
    """The plan as JSON; memory in bytes, on each device."""
    stages = [
        {"stage": need.stage, "weights": need.weights, "activations": need.activations, "total": need.total}
        for need in plan.needs
    ]
    return {
        "fits": plan.fits,
        "devices": plan.devices,
        "device": stored.device.type,
        "device_memory": plan.memory,
        "needed": plan.peak,
        "enough_devices": plan.devices if plan.fits else plan.enough,
        "parameters": plan.parameters,
        "settings": {
            "dtype": str(stored.dtype).removeprefix("torch."),
            "sequence_length": plan.options.sequence_length,
            "row_budget": plan.options.row_budget,
            "checkpoint_activations": plan.options.checkpoint_activations,
            "sharding": plan.devices > 1,
        },
        "stages": stages,
    }


def _print(stored: Stored, plan: Plan) -> None:
    """Print the plan for people."""
    console, table = Console(), Table("stage", "weights, GB", "all else, GB", "together, GB")
    for need in plan.needs:
        figures = (need.weights, need.total - need.weights, need.total)
        table.add_row(need.stage, *(f"{figure / GB:.2f}" for figure in figures))
    console.print(table)
    settings = as_dict(stored, plan)["settings"]
    assert isinstance(settings, dict)
    console.print(", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items()), soft_wrap=True)
    devices = "one device" if plan.devices == 1 else f"{plan.devices} devices"
    verb = "fits on" if plan.fits else "does not fit on"
    console.print(f"It {verb} {devices} of {plan.memory / GB:.1f} GB: it needs {plan.peak / GB:.1f} GB on each.")
    if not plan.fits:
        console.print(f"It would fit on {plan.enough} of them." if plan.enough else "More of them would not help.")


def _arguments() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="unlearnd plan")
    parser.add_argument("model", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--device-memory", type=int)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
