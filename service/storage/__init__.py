"""Release folders, content-addressed; one file a kind of storage."""
