"""What the service does by itself: sweep, purge, deliver."""
