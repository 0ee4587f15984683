"""The node's hardware."""
