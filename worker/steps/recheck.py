"""recheck, in the compute child: earlier requests are measured in full, EL, MA and probes of each, on one version."""

from functools import partial
from pathlib import Path

from worker.engine.prepare import prepare
from worker.engine.probes import Probe
from worker.engine.recheck import came_back, with_all_probes
from worker.steps.pipeline import Pipeline
from worker.steps.reference_texts import read_reference_texts


class RecheckPipeline(Pipeline):
    """The measurement of one shard of a recheck. Nothing is trained, and nothing is written."""

    def run(self) -> None:
        """Measure the earlier requests, and send the refs of those that came back."""
        inputs = self.inputs
        retain, heldout = (read_reference_texts(Path(path)) for path in (inputs.retain, inputs.heldout))
        records = list(zip(inputs.earlier_texts, inputs.earlier_request_ids, strict=True))
        texts, request_ids = zip(*records, strict=True)
        data = prepare(
            self.tokenizer, [], [], retain, heldout, self.options, earlier_texts=texts, earlier_request_ids=request_ids
        )
        given = [Probe(*probe) for probe in inputs.probes]
        data = with_all_probes(self.tokenizer, data, records, given, self.options.seed)
        callbacks = {"progress": partial(self._progress, "measure")}
        back = self._run(came_back, self.parent, self.tokenizer, data, self.options, callbacks=callbacks)
        refs = [inputs.earlier_refs[str(number)] for number in back]
        self.send("rechecked", measured=len(set(request_ids)), came_back=refs)
