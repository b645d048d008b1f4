"""unlearn -> merge -> verify on files. A stage is skipped if `stages.json` lists it and its outputs are unchanged.

work/measure.json                  thresholds and the measurements before, fixed before training
work/reference/                    a model that never saw the texts, for `loss: distil`
work/checkpoint-N-V.pt             after epoch N and V failed verifications: adapter, optimiser, history
work/adapter.safetensors           the adapter at the end of training
work/candidate/                    the merged model, which is verified and published, and the change as an adapter
work/quantised/                    a quantised copy of the candidate, while it is tested
work/stages.json                   the inputs' digest; stage -> its outputs and their sha256
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from service.domain.job_input import JobInput
from service.domain.quantised import QuantisedFinding
from service.domain.report import Artefact, ChildReport
from service.failpoints import reach
from service.files import file_sha256
from service.schemas.report import write_report
from worker.engine.baseline import Baseline
from worker.engine.checkpoint import Checkpoint
from worker.engine.device import trains_in_bfloat16
from worker.engine.measure import ArtefactReport, measure_after, measure_before, with_samples
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import DISTIL, Options
from worker.engine.prepare import Prepared, prepare
from worker.engine.probes import Answer, Probe
from worker.engine.progress import Progress
from worker.engine.reference import train_reference
from worker.engine.types import EpochEntry
from worker.engine.unfit import unfit_requests
from worker.engine.unlearn import train
from worker.engine.verdicts import measure_requests
from worker.steps.checkpoints import load_checkpoint, save_checkpoint
from worker.steps.loading import load_model
from worker.steps.memory import Stored, release
from worker.steps.merging import check_names, make_candidate
from worker.steps.quantising import measured_copies
from worker.steps.reference_texts import read_reference_texts
from worker.steps.report import Run, baseline_summary, child_report
from worker.steps.stages import Stages, replace_file
from worker.steps.team import Team

FORMAT = 15  # of the files in a working folder; an attempt with an older format is not resumed

Result = TypeVar("Result")


class SendMessage(Protocol):
    """Sends a message to the parent process."""

    def __call__(self, kind: str, **values: object) -> None:
        """Send a message of this kind."""


class Pipeline:
    """The compute stages of one job. `run` can be killed at any point and run again."""

    def __init__(self, inputs: JobInput, send: SendMessage, team: Team | None = None) -> None:
        """Read the parent's configuration and tokenizer.

        Args:
            inputs: The job.
            send: Sends messages to the parent process.
            team: The processes that compute it; None is this one alone.
        """
        self.work, self.parent = Path(inputs.work), Path(inputs.parent)
        policy = {"adaptive": False, **inputs.policy}  # policies of earlier releases meant it
        options = Options.from_mapping({name: value for name, value in policy.items() if value is not None})
        stored = Stored.read(self.parent, options)
        self.options, self.device, self.dtype = stored.fitted(inputs.texts), stored.device, stored.dtype
        self.inputs, self.send, self.team = inputs, send, team or Team()
        self.team.start(self.options.devices, self.work / "tmp")
        bfloat16 = trains_in_bfloat16(self.options.train_dtype, self.device)
        self.key = [FORMAT, inputs.run, inputs.policy, str(self.device), str(self.dtype), str(bfloat16)]
        self.tokenizer = AutoTokenizer.from_pretrained(self.parent)
        self.seconds, self.measured, self.quantised = dict[str, float](), dict[str, str](), list[QuantisedFinding]()
        self.said: list[Answer] | None = None
        self.drawn: Baseline | None = None
        transformers_logging.disable_progress_bar()

    def run(self) -> ChildReport | None:
        """Run the stages that are not done yet; returns the report of the tests, or None if requests were put off."""
        torch.manual_seed(self.options.seed)
        self.send("stage", stage="unlearn")
        check_names(self.parent, self.options.target_modules)
        data = self._prepare()
        if data is None:
            return None
        key = json.dumps([*self.key, data.own], sort_keys=True)
        self.stages = Stages(self.work, hashlib.sha256(key.encode()).hexdigest())
        if not data.forget.sequences:
            return self._report(data, None, None, [])
        baseline = self._measure(data)
        reach("child.measured")
        self.send("thresholds", baseline=write_report(baseline_summary(data, baseline)))
        if not baseline.memorised:
            return self._report(data, baseline, None, [])
        while True:
            checkpoint = self._unlearn(data, baseline)
            reach("child.unlearned")
            self.send("stage", stage="merge")
            self._merge()
            reach("child.merged")
            self.send("stage", stage="verify")
            after = self._verify(data, baseline, checkpoint)
            reach("child.verified")
            reopened = checkpoint.reopen(after, self.options.last_epoch)
            if reopened is None:
                if after.passed and self.options.quantise:
                    self._quantise(data, baseline, checkpoint.back)
                return self._report(data, baseline, after, checkpoint.history)
            save_checkpoint(self.work, self.stages, reopened)

    def _report(
        self, data: Prepared, baseline: Baseline | None, after: ArtefactReport | None, history: list[EpochEntry]
    ) -> ChildReport:
        """The report of this run; None for measurements that it did not make."""
        artefact = Artefact(
            sequence_length=self.options.sequence_length,
            weights_dtype=str(self.dtype).removeprefix("torch."),
            evaluated_dtype="float32",
            adapter_sha256=file_sha256(self.work / "adapter.safetensors") if after else None,
        )
        run = Run(
            history,
            self.seconds,
            self.measured,
            artefact,
            self.device.type,
            self.inputs.earlier_refs,
            self.options.attacks,
            self._reference_kind() if after else None,
            self.quantised,
        )
        return child_report(data, baseline, after, run)

    def _run(self, function: Callable[..., Result], folder: Path, *args: object, **arguments: Any) -> Result:
        """Call a function on the model in a folder, in every process; `callbacks` are named arguments of this one."""
        return self.team.run(function, folder, self.dtype, self.device, *args, **arguments)

    def load(self, folder: Path) -> PreTrainedModel:
        """The whole model in a folder, in the policy's precision, on the policy's device."""
        release()
        return load_model(folder, self.dtype, self.device)

    def _prepare(self) -> Prepared | None:
        """The token sequences of the run. A request that would spoil any run is rejected.

        None if requests are put off, which would spoil this one: the job begins again without them.
        """
        pairs = list(zip(self.inputs.texts, self.inputs.request_ids, strict=True))
        retain, heldout = (read_reference_texts(Path(path)) for path in (self.inputs.retain, self.inputs.heldout))
        neighbours = [read_reference_texts(Path(path)) for path in self.inputs.neighbours]
        unfit = unfit_requests(
            self.tokenizer, self.inputs.texts, self.inputs.request_ids, retain, heldout, self.options, neighbours
        )
        if unfit.rejected:
            self.send("rejected", reasons=unfit.rejected)
        if unfit.put_off:
            self.send("put_off", requests=unfit.put_off)
            return None
        measurable = [(text, request_id) for text, request_id in pairs if request_id not in unfit.rejected]
        return prepare(
            self.tokenizer,
            [text for text, _ in measurable],
            [request_id for _, request_id in measurable],
            retain,
            heldout,
            self.options,
            earlier_texts=self.inputs.earlier_texts,
            earlier_request_ids=self.inputs.earlier_request_ids,
            probes=[Probe(*probe) for probe in self.inputs.probes if probe[2] not in unfit.rejected],
            neighbour_texts=neighbours,
            run=self.inputs.run,
        )

    def _progress(self, phase: str, fraction: float) -> None:
        """Report how far a phase is."""
        self.send("progress", phase=phase, fraction=fraction)

    def _measure(self, data: Prepared) -> Baseline:
        """The thresholds and the measurements on the parent; made once, whatever happens later."""
        path = self.work / "measure.json"
        if not self.stages.done("measure"):
            started, first = time.monotonic(), self._first_perplexity(data)
            sets, progress = (self.tokenizer, data, self.options), {"progress": partial(self._progress, "measure")}
            baseline = self._run(measure_before, self.parent, *sets, first_perplexity=first, callbacks=progress)
            self.said = baseline.said
            content = {"baseline": baseline.as_dict(), "seconds": time.monotonic() - started}
            replace_file(path, json.dumps(content).encode())
            self.stages.finish("measure", [path])
        content = json.loads(path.read_bytes())
        self.seconds["measure"] = content["seconds"]
        return replace(Baseline.from_dict(content["baseline"]), said=self.said)

    def _first_perplexity(self, data: Prepared) -> float | None:
        """Held-out perplexity of version 0, measured as the parent's is; None if the parent is version 0."""
        if self.inputs.first == self.inputs.parent:
            return None
        return self._run(perplexity, Path(self.inputs.first), data.utility)

    def _reference_kind(self) -> str | None:
        """Where the reference comes from: the registered base, or nothing at all; None if the loss has none."""
        if self.options.loss != DISTIL:
            return None
        return "base" if self.inputs.base else "fresh"

    def _reference(self, data: Prepared, baseline: Baseline) -> PreTrainedModel | None:
        """The reference of `loss: distil`, made once; None if the loss has none."""
        if self.options.loss != DISTIL:
            return None
        folder, started = self.work / "reference", time.monotonic()
        if not self.stages.done("reference"):
            base = self.load(Path(self.inputs.base)) if self.inputs.base else None
            sets = self.load(self.parent), base, baseline.without_known(data)
            reference = train_reference(*sets, self.options, partial(self._progress, "reference"))
            shutil.rmtree(folder, ignore_errors=True)
            reference.save_pretrained(folder)
            (folder / "seconds.json").write_text(json.dumps(time.monotonic() - started))
            self.stages.finish("reference", sorted(path for path in folder.rglob("*") if path.is_file()))
        self.seconds["reference"] = json.loads((folder / "seconds.json").read_bytes())
        return self.load(folder)

    def _unlearn(self, data: Prepared, baseline: Baseline) -> Checkpoint:
        """Train from the last checkpoint until the criterion is met, or to the last epoch."""
        adapter = self.work / "adapter.safetensors"
        checkpoint = load_checkpoint(self.stages, self.options.last_epoch)
        if checkpoint is None or not self.stages.done("unlearn"):
            for entry in checkpoint.history if checkpoint else []:
                self.send("epoch", values=entry)
            callbacks = {"reference": self._reference(data, baseline), "on_epoch": self._end_epoch}
            sets, progress = (self.tokenizer, data), {"progress": self._progress}
            if self.drawn is None and not (checkpoint and checkpoint.is_last(self.options.last_epoch)):
                self.drawn = self._run(with_samples, self.parent, *sets, baseline, self.options, callbacks=progress)
            arguments: dict[str, Any] = {"resume": checkpoint, "callbacks": callbacks | progress}
            checkpoint = self._run(train, self.parent, *sets, self.drawn or baseline, self.options, **arguments)
            temporary = adapter.with_suffix(".new")
            save_file(checkpoint.final, temporary)
            replace_file(adapter, temporary)
            self.stages.finish("unlearn", [adapter])
        self.seconds["unlearn"] = sum(entry["seconds"] for entry in checkpoint.history)
        return checkpoint

    def _end_epoch(self, checkpoint: Checkpoint) -> None:
        """Save an epoch's checkpoint, then report the epoch."""
        save_checkpoint(self.work, self.stages, checkpoint)
        reach("child.epoch")
        self.send("epoch", values=checkpoint.history[-1])

    def _merge(self) -> None:
        """Make the candidate: the parent's folder with new weights; every other file is copied unchanged."""
        target, started = self.work / "candidate" / "model", time.monotonic()
        if not self.stages.done("merge"):
            release()
            state = load_file(self.work / "adapter.safetensors")
            make_candidate(self.parent, target, state, self.options.scale, partial(self._progress, "merge"))
            self.stages.finish("merge", sorted(path for path in target.parent.rglob("*") if path.is_file()))
        self.send("progress", phase="merge", fraction=1.0)
        self.seconds["merge"] = time.monotonic() - started

    def _verify(self, data: Prepared, baseline: Baseline, checkpoint: Checkpoint) -> ArtefactReport:
        """Measure the candidate, read back from the files that would be published."""
        started = time.monotonic()
        self.measured = self.stages.digests("merge", below=self.work / "candidate")
        sets = (self.tokenizer, data, baseline, self.options)
        further = {"back": checkpoint.back, "ends_at_miss": checkpoint.may_go_on(self.options.last_epoch)}
        callbacks = {"progress": partial(self._progress, "verify")}
        report = self._run(measure_after, self.work / "candidate" / "model", *sets, **further, callbacks=callbacks)
        self.seconds["verify"] = time.monotonic() - started
        return report

    def _quantise(self, data: Prepared, baseline: Baseline, back: Sequence[int]) -> None:
        """Test the quantised copies of a candidate that passed."""
        started, sets = time.monotonic(), (self.tokenizer, data, baseline, self.options)

        def passes(folder: Path, dtype: torch.dtype, progress: Progress) -> bool:
            arguments: dict[str, Any] = {"back": back, "ends_at_miss": True, "callbacks": {"progress": progress}}
            return self.team.run(measure_requests, folder, dtype, self.device, *sets, **arguments).passed

        progress = partial(self._progress, "quantise")
        self.quantised = measured_copies(self.work, self.options.quantise, passes, progress)
        self.seconds["quantise"] = time.monotonic() - started
