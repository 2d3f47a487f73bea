"""Embedded distributor: slot tables in nftables maps, and packet counters."""
