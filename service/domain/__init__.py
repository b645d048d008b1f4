"""Pure rules: states, records, deadlines, batching, errors. Standard library only."""
