"""The embedded distributor: nftables."""
