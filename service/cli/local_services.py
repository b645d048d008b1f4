"""The services of this machine, for commands that work without the API."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import extras

if TYPE_CHECKING:
    from service.bootstrap import Services


DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The data folder of a running embedded stack.")]


def local_services(data_dir: Path | None, *, create: bool = True) -> "Services":
    """Wire the services from the environment's settings, or from an embedded stack's data folder."""
    from service.bootstrap import build
    from service.config import Settings

    if data_dir is None:
        return build(create=create)
    extras.require("--data-dir", "local")
    from service.local.supervisor import Stack

    if not (data_dir / "run").is_dir():
        raise typer.BadParameter(f"{data_dir} is not the folder of an embedded stack", param_hint="--data-dir")
    environment = Stack(data_dir).environment
    names = {name.removeprefix("UNLEARND_").lower(): value for name, value in environment.items()}
    return build(Settings(**{k: v for k, v in names.items() if k in Settings.model_fields}), create=create)  # type: ignore[arg-type]
