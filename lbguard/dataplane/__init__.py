"""Idempotent kernel operations: routes and rules, neighbours, links."""
