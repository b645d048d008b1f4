"""What leaves the service about itself: log lines and traces, with listed fields alone."""
