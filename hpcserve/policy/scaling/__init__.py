"""How many instances there should be: one file a policy, chosen in `registry`."""
