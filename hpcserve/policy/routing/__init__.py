"""Routing: which READY instance serves one interactive request.

Filter, score, pick. What may serve at all (READY, model, headroom, breaker) is decided once a
snapshot in `eligible.py`; a policy then picks one of the seats that are left, for each request.
Policies are pure: the request, the seats and their loads in, an index out. They never see a clock,
a random source or a socket, so the simulator and the property suite run the very same code.
"""
