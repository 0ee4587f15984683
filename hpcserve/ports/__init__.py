"""What the services need of the world, as Protocols; each has its suite in tests/contract."""
