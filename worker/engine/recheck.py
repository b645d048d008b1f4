"""A recheck: earlier requests are measured in full on a version, as the requests of a job are after training."""

import random
from collections.abc import Sequence
from dataclasses import replace

from worker.engine.criterion import judge
from worker.engine.heldout import measured_thresholds
from worker.engine.made_probes import made_probes
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.probes import Probe
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.saying import Texts
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.verdicts import answered_requests, el_and_ma


def with_all_probes(
    tokenizer: Tokenizer, data: Prepared, records: Sequence[tuple[str, int]], given: Sequence[Probe], seed: int
) -> Prepared:
    """The sets of a recheck with every probe that was given, and for each request with one that is made of its texts.

    Args:
        tokenizer: The model's tokenizer.
        data: The sets; their earlier requests are those to be measured.
        records: Their texts, each with the index of its request.
        given: The probes that submitters gave.
        seed: Draws one where a request has several.

    Returns:
        The sets with these probes.
    """
    requests = len({request for _, request in records})
    made = made_probes(
        tokenizer, records, Texts([*data.retain_texts, *data.heldout_texts]), requests, random.Random(seed)
    )
    return replace(data, probes=[*dict.fromkeys([*given, *made])])


def came_back(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> list[int]:
    """The earlier requests that a version remembers: over every unseen text in EL or MA, or with an answered probe.

    The limit of a job's verdict is the 95th percentile: of a thousand texts that are forgotten, many are over it.

    Args:
        model: The version.
        tokenizer: Its tokenizer.
        data: The sets of the recheck.
        options: The options of the model's policy.
        progress: Called with the fraction done, 0..1.

    Returns:
        Their indices, in order.

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
        HeldoutKnown: The version knows too many held-out texts by heart, or numbers in them.
        NotCausal: It reads the text that follows.
    """
    measured, _ = measured_thresholds(model, tokenizer, data, options, partial_progress(progress, 0.0, 0.2))
    thresholds = [replace(one, el_p95=one.el_max, ma_p95=one.ma_max) for one in measured]
    el, ma = el_and_ma(model, data.earlier, thresholds, options, partial_progress(progress, 0.2, 0.5))
    answered, _ = answered_requests(model, tokenizer, data, options, partial_progress(progress, 0.7, 0.3))
    over = {verdict.request for verdict in judge(data.earlier, thresholds, el, ma).verdicts if not verdict.passed}
    return sorted(over | set(answered))
