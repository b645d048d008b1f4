"""The model card of a published version, in the Hugging Face form: the base model's card, and a section of ours."""

import re

from service.audit.certificate import method_name
from service.audit.numbers import certified_limits, certified_means
from service.domain.disclosure import LIMIT_STEP, MEAN_STEP, Contributors
from service.domain.json_types import JsonObject
from service.domain.report import Findings, Utility

FRONT_MATTER = b"""---
library_name: transformers
pipeline_tag: text-generation
tags: [unlearning]
---
"""
BEGIN, END = "<!-- unlearnd: begin -->", "<!-- unlearnd: end -->"
SECTION_PATTERN = re.compile(rf"\s*{BEGIN}.*?{END}\s*".encode(), re.DOTALL)
BASE_REMARK = "The text above is the card of version 0, the base model. Its numbers were measured on that version.\n\n"
SECTION = """# {model}, version {version}

{remark}Version {parent} of this model after approximate unlearning of a set of submitted records, tested against the
criterion of Cha et al. (ICLR 2025). Method: {method}. The weights were merged and are loaded as usual:

```python
AutoModelForCausalLM.from_pretrained(".")
```

| | before | after | held-out mean |
|---|---|---|---|
| mean EL of the forget set | {el_before} | {el_after} | {el_limit} |
| mean MA of the forget set | {ma_before} | {ma_after} | {ma_limit} |
| held-out perplexity | {ppl_before:.2f} | {ppl_after:.2f} | at most x {max_ratio:.2f} |
{total}
Means of the forget set are rounded down to a multiple of {mean_step}, or suppressed, and held-out means are rounded
down to a multiple of {limit_step}. Exact numbers would be about single persons.

The file `certificate.dsse.json` beside this folder states the procedure, its parameters, and what was not tested;
`unlearnd verify` checks it offline. The tests bound greedy extraction of the submitted records. What other attacks
found stands in the certificate, each beside text that the model never saw. Training the model further can bring some
back.
"""


def extended_card(base: bytes, section: str) -> bytes:
    """The base model's card with a section at its end.

    The base model's card stays as it is, its front matter included. It may be a card of ours, because a version can be
    registered as a new model: then the section replaces the earlier one.
    """
    marked = f"{BEGIN}\n{section}{END}\n".encode()
    text = SECTION_PATTERN.sub(b"\n", base)
    if not text.strip():
        return FRONT_MATTER + marked
    return text + (b"\n" if text.endswith(b"\n") else b"\n\n") + marked


def model_card(
    base: bytes,
    model: str,
    version: int,
    parent: int,
    findings: Findings,
    contributors: Contributors,
    policy: JsonObject,
) -> bytes:
    """The model card: the card of the base model, which may be empty, and the test results of the version."""
    assert findings.limits, "a passed run has limits"
    assert findings.before, "a passed run has means before training"
    assert findings.after, "a passed run has means after training"
    assert findings.utility, "a passed run has perplexities"
    limits = certified_limits(findings.limits)
    before, after = (certified_means(means, contributors) for means in (findings.before, findings.after))
    section = SECTION.format(
        remark=BASE_REMARK if base.strip() else "",
        model=model,
        version=version,
        parent=parent,
        method=method_name(policy),
        el_before=before["el"],
        el_after=after["el"],
        el_limit=limits["el"],
        ma_before=before["ma"],
        ma_after=after["ma"],
        ma_limit=limits["ma"],
        ppl_before=findings.utility.heldout_perplexity_before,
        ppl_after=findings.utility.heldout_perplexity_after,
        max_ratio=findings.utility.max_ratio,
        mean_step=MEAN_STEP,
        limit_step=LIMIT_STEP,
        total=_total(findings.utility),
    )
    return extended_card(base, section)


def _total(utility: Utility) -> str:
    """The row of all versions together; empty for a job of a release that did not measure version 0."""
    first, limit = utility.first_heldout_perplexity, utility.max_total_ratio
    if first is None or limit is None:
        return ""
    after = utility.heldout_perplexity_after
    return f"| held-out perplexity, since version 0 | {first:.2f} | {after:.2f} | at most x {limit:.2f} |\n"


DELTA_CARD = """---
{library}tags: [unlearning]
---
# The change from version {base} to version {number} of {model}

This folder is for transport. With version {base} it gives version {number} to the bit, and checks it:

    unlearnd apply VERSION_{base}_FOLDER THIS_RELEASE_FOLDER OUTPUT_FOLDER

{served}**version {base} stays on the disk: it remembers what version {number} was
made to forget**. Whoever has version {number} and this folder can compute version {base}. So keep this folder only
where version {base} may be kept, and delete both when they are no longer needed.
"""


FOR_PEFT = """peft loads it as a LoRA adapter on version {base}. The outputs are then near those of version
{number}, but nobody has tested them, and """
NOT_FOR_PEFT = """peft cannot load it, because it finds no modules of this model for some of the factors. With it, """


def delta_card(model: str, number: int, base: int, *, for_peft: bool) -> str:
    """What the folder `delta/` of a version says of itself."""
    served = (FOR_PEFT if for_peft else NOT_FOR_PEFT).format(base=base, number=number)
    library = "library_name: peft\n" if for_peft else ""
    return DELTA_CARD.format(model=model, number=number, base=base, served=served, library=library)
