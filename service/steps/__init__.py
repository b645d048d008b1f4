"""The database half of each of the seven steps. Steps do not call each other."""
