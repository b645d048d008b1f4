"""unlearn -> merge -> verify on files: each stage leaves a manifest, and is skipped if that still holds.

work/measure.json                  thresholds and the state before, fixed before training
work/checkpoint-N.pt               after epoch N: adapter, optimiser, history
work/adapter.safetensors           what training ended with
work/candidate/model/              the merged model, what is verified and published
work/stages.json                   stage -> inputs' digest and its outputs' sha256
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from service.domain.job_input import JobInput
from service.domain.report import Artefact, ChildReport
from service.failpoints import reach
from service.files import file_sha256
from service.schemas.report import write_report
from worker.engine.data import text_windows
from worker.engine.device import resolve_device, resolve_dtype, trains_in_bfloat16
from worker.engine.errors import TooShort
from worker.engine.measure import ArtefactReport, Baseline, measure_after, measure_before
from worker.engine.merge import merge_into
from worker.engine.options import Options, fitting
from worker.engine.prepare import Prepared, prepare
from worker.engine.train import Checkpoint
from worker.engine.unlearn import train
from worker.steps.reference_texts import read_reference_texts
from worker.steps.report import Run, baseline_summary, child_report
from worker.steps.stages import Stages, replace_file

Tell = Callable[..., None]
WEIGHTS = (".safetensors", ".safetensors.index.json")
FORMAT = 2  # of the files in a working folder: an attempt of an older release is not resumed, but measured anew


class Pipeline:
    """One job's compute stages; `run` can be killed anywhere and run again."""

    def __init__(self, inputs: JobInput, tell: Tell) -> None:
        """Take a job; `tell` sends a message to the parent process."""
        self.work, self.parent = Path(inputs.work), Path(inputs.parent)
        self.options = Options.from_mapping({k: v for k, v in inputs.policy.items() if v is not None})
        self.options = fitting(self.options, AutoConfig.from_pretrained(self.parent))
        self.inputs, self.tell = inputs, tell
        self.device = resolve_device(self.options.device)
        self.dtype = resolve_dtype(self.options.dtype, self.device)
        narrow = trains_in_bfloat16(self.options.train_dtype, self.device)
        key = json.dumps(
            [FORMAT, inputs.run, inputs.policy, str(self.device), str(self.dtype), str(narrow)], sort_keys=True
        )
        self.stages = Stages(self.work, hashlib.sha256(key.encode()).hexdigest())
        self.tokenizer = AutoTokenizer.from_pretrained(self.parent)
        self.seconds: dict[str, float] = {}
        self.measured: dict[str, str] = {}
        transformers_logging.disable_progress_bar()

    def run(self) -> ChildReport:
        """Run what is not done yet; returns what the tests found."""
        torch.manual_seed(self.options.seed)
        self.tell("stage", stage="unlearn")
        data = self._prepare()
        if not data.forget.sequences:
            return self._report(data, None, None, [])
        baseline = self._measure(data)
        reach("child.measured")
        self.tell("thresholds", baseline=write_report(baseline_summary(data, baseline)))
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
            reopened = point.reopen(after, self.options.max_epochs)
            if reopened is None:
                return self._report(data, baseline, after, point.history)
            self._save_checkpoint(reopened)

    def _report(
        self, data: Prepared, baseline: Baseline | None, after: ArtefactReport | None, history: list[dict[str, Any]]
    ) -> ChildReport:
        artefact = Artefact(
            sequence_length=self.options.sequence_length,
            weights_dtype=str(self.dtype).removeprefix("torch."),
            evaluated_dtype="float32",
            adapter_sha256=file_sha256(self.work / "adapter.safetensors") if after else None,
        )
        run = Run(history, self.seconds, self.measured, artefact, self.device.type, self.inputs.earlier_refs)
        return child_report(data, baseline, after, run)

    def load(self, folder: Path) -> Any:
        """A model from disk, in the precision of the policy, on its device."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, use_safetensors=True)
        return model.to(self.device).eval()

    def _prepare(self) -> Prepared:
        """Sets of the run; a request with a text that nothing can be measured on is rejected."""
        texts, request_ids = self.inputs.texts, self.inputs.request_ids
        rejected: dict[int, str] = {}
        for text, owner in zip(texts, request_ids, strict=True):
            try:
                text_windows(self.tokenizer, text, self.options.sequence_length)
            except TooShort as error:
                rejected[owner] = error.code
        if rejected:
            self.tell("rejected", reasons=rejected)
        kept = [(t, o) for t, o in zip(texts, request_ids, strict=True) if o not in rejected]
        return prepare(
            self.tokenizer, [t for t, _ in kept], [o for _, o in kept],
            read_reference_texts(Path(self.inputs.retain)), read_reference_texts(Path(self.inputs.heldout)), self.options,
            earlier_texts=self.inputs.earlier_texts, earlier_request_ids=self.inputs.earlier_request_ids,
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
        resume = self._load_checkpoint()
        if resume is None or not self.stages.done("unlearn"):
            for entry in resume.history if resume else []:
                self.tell("epoch", values=entry)

            def on_epoch(point: Checkpoint) -> None:
                self._save_checkpoint(point)
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

    def _save_checkpoint(self, point: Checkpoint) -> None:
        """Write a checkpoint down; what was made of an earlier one does not hold any more."""
        path = self.work / f"checkpoint-{point.epoch}-{point.verified}.pt"
        torch.save({name: getattr(point, name) for name in Checkpoint.__slots__}, path.with_suffix(".new"))
        replace_file(path, path.with_suffix(".new"))
        self.stages.finish("epoch", [path], undo=("unlearn", "merge"))
        for other in self.work.glob("checkpoint-*.pt"):
            if other != path:
                other.unlink()

    def _load_checkpoint(self) -> Checkpoint | None:
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

    def _verify(self, data: Prepared, baseline: Baseline) -> ArtefactReport:
        """Measure the files that would be published, read back from disk."""
        started = time.monotonic()
        self.measured = self.stages.digests("merge", below=self.work / "candidate")
        model = self.load(self.work / "candidate" / "model")
        report = measure_after(model, data, baseline, self.options, self._progress("verify"))
        self.seconds["verify"] = time.monotonic() - started
        return report


def _left_out(_: str, names: list[str]) -> list[str]:
    """Weights, which are made anew, and the parent's model card."""
    return [n for n in names if n.endswith(WEIGHTS) or n == "README.md"]
