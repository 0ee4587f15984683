"""The ledger in memory: no threads, no files; for the simulator and for tests."""
