"""Admission: who is served next when there is less room than demand, and who is told to wait."""
