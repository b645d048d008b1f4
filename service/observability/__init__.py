"""What the service reports about its own running: log lines and traces, with listed fields only."""
