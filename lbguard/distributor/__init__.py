"""Distributors, which map packets to fwmarks: nfqlb, nftables, or nothing (observe)."""
