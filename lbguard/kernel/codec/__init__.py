"""Lean codec of rtnetlink messages: decodes bytes into events of the core, and encodes requests."""
