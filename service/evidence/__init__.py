"""The signing keys and the keeper of the transparency log: the parts that hold secrets or memory."""
