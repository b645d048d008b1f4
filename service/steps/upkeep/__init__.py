"""Steps that the service takes by itself: sweep, purge, deliver."""
