"""Decisions, pure: events and the time in, effects out (`engine.py`). No socket, clock, logger or asyncio."""
