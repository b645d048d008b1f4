"""The signing keys and the keeper of the transparency log: the modules that hold secrets or state on disk."""
