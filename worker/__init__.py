"""The Celery side: compute in a child process, control without torch."""
