"""Errors of the engine, one tree::

EngineError            code, message; never contains text of a record
|-- Unplanned          the memory of a job on this model cannot be counted
|-- InputError         the inputs cannot be used (permanent: a retry gives the same result)
|   |-- TooFewTexts    held-out or retain text is missing
|   |-- HeldoutTooFew  an attack that blocks has no test at its level beside so little held-out text
|   |-- HeldoutKnown   the model knows held-out text
|   |-- TooShort       a record has no token that the model predicts
|   |-- UnknownPlugin  no loss, init or target module has that name
|   |-- NotCausal      the model reads the text that follows
|   |-- NoReference    distillation needs a model that never saw the texts, and there is none
|   |-- TooLarge       the model does not fit into the memory of this worker
|   `-- UnmergedModule the model's files name an adapted module otherwise
`-- TrainingDiverged   the loss became NaN or infinite
"""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator raised an error: it says nothing about what was tried."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error).lower()


class EngineError(Exception):
    """Root of all errors that the engine raises on purpose; `code` is stable and machine-readable."""

    code = "engine_error"
    permanent = False


class Unplanned(EngineError):
    """The model's code does not run on shapes alone, so nobody knows how much memory a job takes."""

    code = "unplanned"


class InputError(EngineError):
    """The inputs cannot be used; a retry gives the same result."""

    code = "bad_input"
    permanent = True


class TooFewTexts(InputError):
    """Too little text to set a threshold or to train on."""

    code = "too_few_texts"


class HeldoutTooFew(InputError):
    """There are too few held-out texts for the attacks that block: their tests would say nothing at their level."""

    code = "heldout_too_few"


class HeldoutKnown(InputError):
    """The model knows held-out texts by heart, or numbers in them, so they set no threshold."""

    code = "heldout_known"


class TooShort(InputError):
    """A record has no token that the model predicts, so nothing can be measured on it."""

    code = "too_short"


class UnknownPlugin(InputError):
    """The policy names a loss, initialisation or target module that does not exist."""

    code = "unknown_plugin"


class NotCausal(InputError):
    """What a model says of a token depends on those after it: it is no decoder, and nothing measured on it is right."""

    code = "not_causal"


class NoReference(InputError):
    """Distillation needs a model that never saw the texts; none is registered, and none can be made."""

    code = "no_reference"


class TooLarge(InputError):
    """No setting lets the job fit into the memory of this worker; `unlearnd plan` says what would."""

    code = "model_too_large"


class UnmergedModule(InputError):
    """The weights of an adapted module are in the model's files under another name, so they cannot be merged there."""

    code = "unmerged_module"


class TrainingDiverged(EngineError):
    """The loss is no longer finite; the parameters are worthless."""

    code = "training_diverged"
    permanent = True
