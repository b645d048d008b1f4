"""The model card of a published version, in the Hugging Face form."""

from dataclasses import asdict

from service.audit.certificate import decimals
from service.domain.disclosure import suppressed
from service.domain.report import Findings

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [unlearning]
---
# {model}, version {version}

Version {parent} of this model after approximate unlearning (FILA + IHL on LoRA, Cha et al., ICLR 2025) of a set
of submitted records. The weights were merged and are loaded as usual:

```python
AutoModelForCausalLM.from_pretrained(".")
```

| | before | after | held-out mean |
|---|---|---|---|
| mean EL of the forget set | {el_before} | {el_after} | {el_limit} |
| mean MA of the forget set | {ma_before} | {ma_after} | {ma_limit} |
| held-out perplexity | {ppl_before:.2f} | {ppl_after:.2f} | at most x {max_ratio:.2f} |

What was done, with which parameters, and what was not tested stands in `certificate.dsse.json` beside this
folder; `unlearnd verify` checks it offline. The tests bound greedy extraction of the submitted records. They say
nothing of other ways to elicit them, and quantising the model or training it further can bring some back.
"""


def model_card(model: str, parent: int, findings: Findings, submitters: int) -> str:
    """The card's text, from what the tests of the version found."""
    assert findings.limits and findings.before and findings.after and findings.utility
    limits = decimals(asdict(findings.limits))
    before, after = (suppressed(decimals(asdict(m)), submitters) for m in (findings.before, findings.after))
    return CARD.format(
        model=model,
        version=parent + 1,
        parent=parent,
        el_before=before["el"],
        el_after=after["el"],
        el_limit=limits["el"],
        ma_before=before["ma"],
        ma_after=after["ma"],
        ma_limit=limits["ma"],
        ppl_before=findings.utility.heldout_perplexity_before,
        ppl_after=findings.utility.heldout_perplexity_after,
        max_ratio=findings.utility.max_ratio,
    )
