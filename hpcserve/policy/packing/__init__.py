"""Packing: which batch an instance that asks for work gets it from.

A packer is a pure function `pack(view, settings, now) -> Pick | Nothing`. The registry names them;
the setting `[batching] packing` chooses one.
"""
