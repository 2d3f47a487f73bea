"""Streams and targets from Meridio's registry."""
