"""Telemetry of the service: log, metrics, HTTP pages, decisions and their text."""
