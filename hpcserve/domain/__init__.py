"""The nouns and their life cycles: standard library only; no clock, logging, or input/output."""
