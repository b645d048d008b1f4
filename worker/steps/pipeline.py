"""unlearn -> merge -> verify on files: each stage leaves a manifest, and is skipped if that still holds.

work/measure.json                  thresholds and the state before, fixed before training
work/checkpoint-N.pt               after epoch N: adapter, optimiser, history
work/adapter.safetensors           what training ended with
work/candidate/model/              the merged model, what is verified and published
work/stages.json                   stage -> inputs' digest and its outputs' sha256
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from service.failpoints import reach
from worker.engine.data import text_windows
from worker.engine.device import resolve_device, resolve_dtype, trains_in_bfloat16
from worker.engine.errors import TooShort
from worker.engine.measure import Baseline, as_table, measure_after, measure_before
from worker.engine.merge import merge_into
from worker.engine.options import Options, fitting
from worker.engine.prepare import Prepared, prepare
from worker.engine.train import Checkpoint
from worker.engine.unlearn import train
from worker.steps.files import Stages, read_texts, replace_file

Tell = Callable[..., None]
WEIGHTS = (".safetensors", ".safetensors.index.json")
PACKAGES = ("torch", "transformers", "peft", "safetensors", "unlearnd")


class Pipeline:
    """One job's compute stages; `run` can be killed anywhere and run again."""

    def __init__(self, inputs: dict[str, Any], tell: Tell) -> None:
        """Take what `service.steps.unlearn.compute_input` gave."""
        self.work, self.parent = Path(inputs["work"]), Path(inputs["parent"])
        self.options = Options.from_mapping({k: v for k, v in inputs["policy"].items() if v is not None})
        self.options = fitting(self.options, AutoConfig.from_pretrained(self.parent))
        self.inputs, self.tell = inputs, tell
        self.device = resolve_device(self.options.device)
        self.dtype = resolve_dtype(self.options.dtype, self.device)
        narrow = trains_in_bfloat16(self.options.train_dtype, self.device)
        key = json.dumps(
            [inputs["run"], inputs["policy"], str(self.device), str(self.dtype), str(narrow)], sort_keys=True
        )
        self.stages = Stages(self.work, hashlib.sha256(key.encode()).hexdigest())
        self.tokenizer = AutoTokenizer.from_pretrained(self.parent)
        self.seconds: dict[str, float] = {}
        self.measured: dict[str, str] = {}
        transformers_logging.disable_progress_bar()

    def run(self) -> dict[str, Any]:
        """Run what is not done yet; returns the report for the certificate."""
        torch.manual_seed(self.options.seed)
        self.tell("stage", stage="unlearn")
        data = self._prepare()
        if not data.forget.sequences:
            return self._report(data, None, None, [])
        baseline = self._measure(data)
        reach("child.measured")
        self.tell("thresholds", values=self._thresholds(data, baseline), table=as_table(baseline.limits))
        if not baseline.memorised:
            return self._report(data, baseline, None, [])
        while True:
            point = self._unlearn(data, baseline)
            reach("child.unlearned")
            self.tell("stage", stage="merge")
            self._merge(point)
            reach("child.merged")
            self.tell("stage", stage="verify")
            after = self._verify(data, baseline)
            reach("child.verified")
            again = point.reopen(after, self.options.max_epochs)
            if again is None:
                return self._report(data, baseline, after, point.history)
            self._keep(again)

    def load(self, folder: Path) -> Any:
        """A model from disk, in the precision of the policy, on its device."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, use_safetensors=True)
        return model.to(self.device).eval()

    def _prepare(self) -> Prepared:
        """Sets of the run; a request with a text that nothing can be measured on is rejected."""
        texts, owners = self.inputs["texts"], self.inputs["owners"]
        rejected: dict[int, str] = {}
        for text, owner in zip(texts, owners, strict=True):
            try:
                text_windows(self.tokenizer, text, self.options.sequence_length)
            except TooShort as error:
                rejected[owner] = error.code
        if rejected:
            self.tell("rejected", reasons=rejected)
        kept = [(t, o) for t, o in zip(texts, owners, strict=True) if o not in rejected]
        return prepare(
            self.tokenizer, [t for t, _ in kept], [o for _, o in kept],
            read_texts(Path(self.inputs["retain"])), read_texts(Path(self.inputs["heldout"])), self.options,
            earlier_texts=self.inputs["earlier_texts"], earlier_owners=self.inputs["earlier_owners"],
        )  # fmt: skip

    def _progress(self, phase: str) -> Callable[[float], None]:
        return lambda fraction: self.tell("progress", phase=phase, fraction=fraction)

    def _measure(self, data: Prepared) -> Baseline:
        """Thresholds and the state before; measured once, whatever happens later."""
        path = self.work / "measure.json"
        if not self.stages.done("measure"):
            started = time.monotonic()
            baseline = measure_before(self.load(self.parent), data, self.options, self._progress("measure"))
            found = {"baseline": baseline.as_dict(), "seconds": time.monotonic() - started}
            replace_file(path, json.dumps(found).encode())
            self.stages.finish("measure", [path])
        found = json.loads(path.read_bytes())
        self.seconds["measure"] = found["seconds"]
        return Baseline.from_dict(found["baseline"])

    def _unlearn(self, data: Prepared, baseline: Baseline) -> Checkpoint:
        """Train from the last epoch that was kept, to the criterion or the last epoch."""
        adapter = self.work / "adapter.safetensors"
        resume = self._checkpoint()
        if resume is None or not self.stages.done("unlearn"):
            for entry in resume.history if resume else []:
                self.tell("epoch", values=entry)

            def on_epoch(point: Checkpoint) -> None:
                self._keep(point)
                reach("child.epoch")
                self.tell("epoch", values=point.history[-1])

            resume = train(
                self.load(self.parent), self.tokenizer, data, baseline, self.options, resume=resume, on_epoch=on_epoch,
                progress=lambda phase, fraction: self.tell("progress", phase=phase, fraction=fraction),
            )  # fmt: skip
            temporary = adapter.with_suffix(".new")
            save_file(resume.final, temporary)
            replace_file(adapter, temporary)
            self.stages.finish("unlearn", [adapter])
        self.seconds["unlearn"] = sum(entry["seconds"] for entry in resume.history)
        return resume

    def _keep(self, point: Checkpoint) -> None:
        """Write a checkpoint down; what was made of an earlier one does not hold any more."""
        path = self.work / f"checkpoint-{point.epoch}-{point.verified}.pt"
        torch.save({name: getattr(point, name) for name in Checkpoint.__slots__}, path.with_suffix(".new"))
        replace_file(path, path.with_suffix(".new"))
        self.stages.finish("epoch", [path], undo=("unlearn", "merge"))
        for other in self.work.glob("checkpoint-*.pt"):
            if other != path:
                other.unlink()

    def _checkpoint(self) -> Checkpoint | None:
        """The last epoch's checkpoint, if it is whole and of this very run."""
        if not self.stages.done("epoch"):
            return None
        (path,) = self.stages.outputs("epoch")
        return Checkpoint(**torch.load(path, weights_only=True, map_location="cpu"))

    def _merge(self, point: Checkpoint) -> None:
        """The parent's folder with changed weights: every other file is copied as it is."""
        target, started = self.work / "candidate" / "model", time.monotonic()
        if not self.stages.done("merge"):
            shutil.rmtree(target.parent, ignore_errors=True)
            shutil.copytree(self.parent, target, ignore=_left_out)
            kept = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
            model = AutoModelForCausalLM.from_pretrained(self.parent, dtype="auto", use_safetensors=True)
            merge_into(model, load_file(self.work / "adapter.safetensors"), self.options.scale)
            model.save_pretrained(target)
            for path, content in kept.items():
                path.write_bytes(content)
            self.stages.finish("merge", sorted(p for p in target.rglob("*") if p.is_file()))
        self.tell("progress", phase="merge", fraction=1.0)
        self.seconds["merge"] = time.monotonic() - started

    def _verify(self, data: Prepared, baseline: Baseline) -> dict[str, Any]:
        """Measure the files that would be published, read back from disk."""
        started = time.monotonic()
        self.measured = self.stages.digests("merge", below=self.work / "candidate")
        model = self.load(self.work / "candidate" / "model")
        report = measure_after(model, data, baseline, self.options, self._progress("verify"))
        self.seconds["verify"] = time.monotonic() - started
        return report

    def _thresholds(self, data: Prepared, baseline: Baseline) -> dict[str, Any]:
        before = baseline.of_memorised(data.forget) if baseline.memorised else baseline.before
        return {
            "limits": {"el": before.el_limit, "ma": before.ma_limit},
            "before": {"el": before.el, "ma": before.ma},
            "heldout_perplexity": baseline.perplexity,
            "memorised": len(baseline.memorised),
            "requests": len(baseline.before.verdicts),
            "retain_excluded": data.retain_excluded,
            "heldout_excluded": data.heldout_excluded,
        }

    def _report(
        self,
        data: Prepared,
        baseline: Baseline | None,
        after: dict[str, Any] | None,
        history: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """What the certificate needs: aggregates and verdicts, nothing measured on a single request."""
        before = baseline.before if baseline else None
        outcome = "rejected" if before is None else "not_memorised"
        if after is not None:
            outcome = "passed" if after["passed"] else "failed"
        verdicts = {v.request: "PASS" for v in before.verdicts if v.looks_unseen} if before else {}
        if after is not None:
            verdicts = {v["request"]: "PASS" if v["passed"] else "FAIL" for v in after["per_record"]}
        judged = after["before"] if after else before.as_dict() if before else None
        adapter = self.work / "adapter.safetensors"
        return {
            "outcome": outcome,
            "reason": after["reason"] if after else None,
            "verdicts": {str(k): v for k, v in verdicts.items()},
            "memorised": baseline.memorised if baseline else [],
            "earlier": self._earlier(after) if after else None,
            "over_forgotten": sum(v["over_forgotten"] for v in after["per_record"]) if after else 0,
            "thresholds": as_table(baseline.limits) if baseline else [],
            "limits": {"el": judged["el_limit"], "ma": judged["ma_limit"]} if judged else {},
            "before": {"el": judged["el"], "ma": judged["ma"]} if judged else {},
            "after": {"el": after["after"]["el"], "ma": after["after"]["ma"]} if after else None,
            "utility": after["utility"] if after else None,
            "files": self.measured,
            "epochs": len(history),
            "trajectory": [{name: entry[name] for name in ("epoch", "el", "ma", "perplexity")} for entry in history],
            "seconds": self.seconds,
            "retain_excluded": data.retain_excluded,
            "heldout_excluded": data.heldout_excluded,
            "artefact": {
                "sequence_length": self.options.sequence_length,
                "weights_dtype": str(self.dtype).removeprefix("torch."),
                "evaluated_dtype": "float32",
                "adapter_sha256": _sha256(adapter) if after else None,
            },
            "environment": {
                "device": self.device.type,
                "python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "installed": _installed(),
                "code": _code(),
            },
        }

    def _earlier(self, after: dict[str, Any]) -> dict[str, Any]:
        """How many requests of earlier versions were measured again, and the refs of those that came back."""
        refs = [self.inputs["earlier_refs"][str(v["request"])] for v in after["earlier"] if not v["passed"]]
        return {"requests": len(after["earlier"]), "regressed": refs}


def _left_out(_: str, names: list[str]) -> list[str]:
    """Weights, which are made anew, and the parent's model card."""
    return [n for n in names if n.endswith(WEIGHTS) or n == "README.md"]


def _installed() -> str:
    """sha256 over the name and version of everything that is installed, one a line."""
    found = {f"{d.metadata['Name']}=={d.version}\n".lower() for d in importlib.metadata.distributions()}
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()


def _code() -> str:
    """sha256 over our own source files: path and digest of each, one a line."""
    root = Path(__file__).parents[2]
    paths = sorted(p for package in ("service", "worker") for p in (root / package).rglob("*.py"))
    lines = (f"{_sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
