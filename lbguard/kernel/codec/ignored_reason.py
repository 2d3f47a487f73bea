"""The names of what is ignored of what the kernel sends."""

from enum import StrEnum


class IgnoredReason(StrEnum):
    """Reason why a message gave no event. A bounded set: it becomes a metric label."""

    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    FOREIGN_SENDER = "foreign_sender"
    UNKNOWN_TYPE = "unknown_type"
    OTHER_FAMILY = "other_family"
    NEIGHBOR_PROXY = "neighbor_proxy"
    OTHER_TABLE = "other_table"
    NOT_DEFAULT_ROUTE = "not_default_route"
    OTHER_ROUTE_TYPE = "other_route_type"
    ROUTE_CACHED = "route_cached"
    ROUTE_MULTIPATH = "route_multipath"
    ROUTE_NEXTHOP_OBJECT = "route_nexthop_object"
    ROUTE_VIA_OTHER_FAMILY = "route_via_other_family"
    NOT_FWMARK_RULE = "not_fwmark_rule"
    DUMP_ABANDONED = "dump_abandoned"
    WHILE_DRAINING = "while_draining"
