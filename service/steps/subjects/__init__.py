"""From a person to the records about them: index, resolve, approve."""
