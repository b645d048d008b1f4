"""Everything that runs without a GPU: HTTP, domain, database, storage, audit, CLI, client. No torch."""
