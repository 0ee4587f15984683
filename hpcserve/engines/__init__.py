"""Engines: how to start one, how to read it, and a stand-in for trials and tests."""
