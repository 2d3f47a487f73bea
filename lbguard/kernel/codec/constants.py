"""Constants of rtnetlink (include/uapi/linux: netlink.h, rtnetlink.h, neighbour.h, ...).

pyroute2 names the types of messages, the flags and the groups. This module has the attributes, which pyroute2 knows
only by the names of its message classes, the fields of the fixed headers, and the reasons for which a message is
ignored.
"""

from enum import StrEnum
from typing import Final

from pyroute2.netlink import NLM_F_ACK as NLM_F_ACK
from pyroute2.netlink import NLM_F_ACK_TLVS as NLM_F_ACK_TLVS
from pyroute2.netlink import NLM_F_CREATE as NLM_F_CREATE
from pyroute2.netlink import NLM_F_DUMP as NLM_F_DUMP
from pyroute2.netlink import NLM_F_DUMP_INTR as NLM_F_DUMP_INTR
from pyroute2.netlink import NLM_F_EXCL as NLM_F_EXCL
from pyroute2.netlink import NLM_F_MULTI as NLM_F_MULTI
from pyroute2.netlink import NLM_F_REPLACE as NLM_F_REPLACE
from pyroute2.netlink import NLM_F_REQUEST as NLM_F_REQUEST
from pyroute2.netlink import NLMSG_DONE as NLMSG_DONE
from pyroute2.netlink import NLMSG_ERROR as NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_DELADDR as RTM_DELADDR
from pyroute2.netlink.rtnl import RTM_DELLINK as RTM_DELLINK
from pyroute2.netlink.rtnl import RTM_DELNEIGH as RTM_DELNEIGH
from pyroute2.netlink.rtnl import RTM_DELROUTE as RTM_DELROUTE
from pyroute2.netlink.rtnl import RTM_DELRULE as RTM_DELRULE
from pyroute2.netlink.rtnl import RTM_GETADDR as RTM_GETADDR
from pyroute2.netlink.rtnl import RTM_GETLINK as RTM_GETLINK
from pyroute2.netlink.rtnl import RTM_GETNEIGH as RTM_GETNEIGH
from pyroute2.netlink.rtnl import RTM_GETROUTE as RTM_GETROUTE
from pyroute2.netlink.rtnl import RTM_GETRULE as RTM_GETRULE
from pyroute2.netlink.rtnl import RTM_NEWADDR as RTM_NEWADDR
from pyroute2.netlink.rtnl import RTM_NEWLINK as RTM_NEWLINK
from pyroute2.netlink.rtnl import RTM_NEWNEIGH as RTM_NEWNEIGH
from pyroute2.netlink.rtnl import RTM_NEWROUTE as RTM_NEWROUTE
from pyroute2.netlink.rtnl import RTM_NEWRULE as RTM_NEWRULE
from pyroute2.netlink.rtnl import RTNLGRP_IPV4_IFADDR as RTNLGRP_IPV4_IFADDR
from pyroute2.netlink.rtnl import RTNLGRP_IPV4_ROUTE as RTNLGRP_IPV4_ROUTE
from pyroute2.netlink.rtnl import RTNLGRP_IPV4_RULE as RTNLGRP_IPV4_RULE
from pyroute2.netlink.rtnl import RTNLGRP_IPV6_IFADDR as RTNLGRP_IPV6_IFADDR
from pyroute2.netlink.rtnl import RTNLGRP_IPV6_ROUTE as RTNLGRP_IPV6_ROUTE
from pyroute2.netlink.rtnl import RTNLGRP_IPV6_RULE as RTNLGRP_IPV6_RULE
from pyroute2.netlink.rtnl import RTNLGRP_LINK as RTNLGRP_LINK
from pyroute2.netlink.rtnl import RTNLGRP_NEIGH as RTNLGRP_NEIGH

AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_INET6: Final = 10

NLMSGERR_ATTR_MSG: Final = 1

IFF_UP: Final = 0x1
IFF_LOWER_UP: Final = 0x10000
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_AF_SPEC: Final = 26
IFLA_EXT_MASK: Final = 29
IFLA_INET_CONF: Final = 1
IPV4_DEVCONF_ARP_NOTIFY: Final = 22
RTEXT_FILTER_SKIP_STATS: Final = 8
IN6_ADDR_GEN_MODE_NONE: Final = 1

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
IFA_F_OPTIMISTIC: Final = 0x04
IFA_F_DADFAILED: Final = 0x08
IFA_F_TENTATIVE: Final = 0x40

NDA_DST: Final = 1
NDA_LLADDR: Final = 2
NDA_CACHEINFO: Final = 3
NDA_PROBES: Final = 4
NDA_PROTOCOL: Final = 12
NDA_FLAGS_EXT: Final = 15
NTF_USE: Final = 0x01
NTF_PROXY: Final = 0x08
NTF_EXT_LEARNED: Final = 0x10
NTF_EXT_MANAGED: Final = 0x01

RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_MULTIPATH: Final = 9
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTA_NH_ID: Final = 30
RTM_F_CLONED: Final = 0x200
RT_SCOPE_UNIVERSE: Final = 0
RT_SCOPE_NOWHERE: Final = 255
RT_TABLE_UNSPEC: Final = 0
RT_TABLE_MAIN: Final = 254
RTPROT_KERNEL: Final = 2
RTPROT_RA: Final = 9
RTNH_F_ONLINK: Final = 4

FR_ACT_TO_TBL: Final = 1
FIB_RULE_INVERT: Final = 2
FRA_DST: Final = 1
FRA_SRC: Final = 2
FRA_IIFNAME: Final = 3
FRA_PRIORITY: Final = 6
FRA_FWMARK: Final = 10
FRA_TUN_ID: Final = 12
FRA_TABLE: Final = 15
FRA_FWMASK: Final = 16
FRA_OIFNAME: Final = 17
FRA_UID_RANGE: Final = 20
FRA_PROTOCOL: Final = 21
FRA_IP_PROTO: Final = 22
FRA_SPORT_RANGE: Final = 23
FRA_DPORT_RANGE: Final = 24


class IgnoredReason(StrEnum):
    """Reason why a message gave no event. The set is bounded: it becomes a metric label."""

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
    ROUTE_TO_PARKING = "route_to_parking"
    NOT_FWMARK_RULE = "not_fwmark_rule"
    DUMP_ABANDONED = "dump_abandoned"
    WHILE_DRAINING = "while_draining"
