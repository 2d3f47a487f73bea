"""The kernel over netlink: lean encoding and decoding, and the mirror."""
