"""The kernel over netlink: its mirror, and requests for routes, rules, neighbours and links."""
