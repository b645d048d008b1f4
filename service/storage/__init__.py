"""Content-addressed storage of release folders. One file for each kind of storage."""
