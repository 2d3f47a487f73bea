"""Metrics of the service: definitions in `guard.py`, with series of streams, targets, links and affinity beside it."""
