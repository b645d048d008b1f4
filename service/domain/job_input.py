"""The input of the compute child. It goes through a pipe, never to a disk."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class JobInput:
    """Everything that the compute stages of one job need, texts included.

    Attributes:
        work: The attempt's working folder.
        parent: The folder of the parent model.
        first: The folder of version 0, the registered model.
        retain: The file of retain texts.
        heldout: The file of held-out texts.
        policy: The model's policy when the batch was sealed.
        texts: Texts to forget.
        request_ids: For each text the index of its request in the job.
        earlier_texts: Texts that earlier versions unlearned and that are still kept.
        earlier_request_ids: For each earlier text the number of its request, the same in each attempt.
        earlier_refs: Number of an earlier request, as a string -> the request's ref.
        run: A digest of the job's own inputs; the child does not resume a checkpoint of others. Earlier texts may be
            purged between two attempts.
        probes: Prompt, secret and number of the request of each probe, of earlier requests, too.
        base: The folder of the model that the registered one was fine-tuned from; None if none is registered.
        neighbours: The files of texts that the model must not lose, in the order of their names.
        recheck: The earlier texts are only measured, all of them in full, on the parent.
    """

    work: str
    parent: str
    first: str
    retain: str
    heldout: str
    policy: dict[str, object]
    texts: list[str]
    request_ids: list[int]
    earlier_texts: list[str]
    earlier_request_ids: list[int]
    earlier_refs: dict[str, str]
    run: str
    probes: list[tuple[str, str, int]] = field(default_factory=list)
    base: str | None = None
    neighbours: list[str] = field(default_factory=list)
    recheck: bool = False
