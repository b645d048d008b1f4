"""`python -m service.cli` is `unlearnd`."""

from service.cli import main

main()
