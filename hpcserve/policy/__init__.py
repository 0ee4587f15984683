"""Pure decisions: a snapshot and `now` in, values with reasons out."""
