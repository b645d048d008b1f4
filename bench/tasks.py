"""The paper's reasoning tasks (or any of lm-eval) on two models, such as a base and its certified version.

    pip install --group bench  # pip 25.1 or newer
    python -m bench.tasks --models BEFORE AFTER [--tasks hellaswag,piqa,...] [--include FOLDER] [--limit 200]

A task reads its data from the data sets' cache; nothing is fetched. Tasks whose data is not there are named and left
out. `--include` is a folder of lm-eval's YAML files, for tasks on data of your own.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.data import machine

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
OF_THE_PAPER = (
    *("lambada_openai", "hellaswag", "winogrande", "copa", "arc_easy", "arc_challenge", "piqa", "mathqa", "pubmedqa"),
)


def with_data(manager: object, names: Sequence[str]) -> list[str]:
    """The tasks whose data is there. A task's loader may fail in any way, in whatever library."""
    there = []
    for name in names:
        try:
            manager.load_task_or_group(name)  # type: ignore[attr-defined]  # lm-eval has no types
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}")
        else:
            there.append(name)
    return there


def accuracies(folder: str, manager: object, names: Sequence[str], limit: int | None) -> dict[str, float]:
    """Accuracy of a model on each task, the normalised one where there is one; nan where there is none."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = HFLM(pretrained=folder, batch_size=8, device=device)
    evaluated = simple_evaluate(model=model, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=0)
    return {
        name: float(of.get("acc_norm,none", of.get("acc,none", math.nan))) for name, of in evaluated["results"].items()
    }


def main() -> None:
    """Evaluate both models and print the table."""
    from lm_eval.tasks import TaskManager

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--tasks", default=",".join(OF_THE_PAPER))
    parser.add_argument("--include", type=Path)
    parser.add_argument("--limit", type=int, help="questions of each task")
    given = parser.parse_args()
    manager = TaskManager(include_path=str(given.include) if given.include else None)
    names = given.tasks.split(",")
    if unknown := set(names) - set(manager.all_tasks):
        parser.error(f"--tasks: unknown: {', '.join(sorted(unknown))}")
    there = with_data(manager, names)
    if not there:
        raise SystemExit("no task has its data here")
    columns = [accuracies(folder, manager, there, given.limit) for folder in given.models]
    print(f"\nMachine: {machine()}, torch {torch.__version__}.\n")
    print(f"| task | {' | '.join(Path(folder).name for folder in given.models)} |\n|---{'|---' * len(columns)}|")
    for name in there:
        print(f"| {name} | {' | '.join(f'{column[name]:.3f}' for column in columns)} |")


if __name__ == "__main__":
    main()
