"""Affinity: flows born around an incident stay with the target that answered them, in nftables maps of our own."""
