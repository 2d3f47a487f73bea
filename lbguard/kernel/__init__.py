"""The kernel over netlink: its mirror, and requests for routes, rules, neighbours and links."""

from lbguard.kernel.library import defer_package

# Before the first module of this package imports a part of it.
defer_package("pyroute2")
