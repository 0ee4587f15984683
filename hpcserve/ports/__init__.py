"""What the services need of the world, as Protocols; each has one contract suite in tests/contract."""
