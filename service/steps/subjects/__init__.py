"""Steps from a person to the records about that person: index, resolve, approve."""
