"""Verdicts as messages of the verdict service. Pure."""

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.addr import format_ip
from lbguard.core.model import (
    ConnectionSubject,
    FamilyEvidence,
    LinkSubject,
    Subject,
    TargetSubject,
    Verdict,
    VerdictState,
)

_STATES = {
    VerdictState.UP: pb.VERDICT_STATE_UP,
    VerdictState.DEGRADED: pb.VERDICT_STATE_DEGRADED,
    VerdictState.DOWN: pb.VERDICT_STATE_DOWN,
    VerdictState.HEALING: pb.VERDICT_STATE_HEALING,
    VerdictState.ENDED: pb.VERDICT_STATE_ENDED,
}


def verdict_message(verdict: Verdict, sequence: int, lease_s: float) -> pb.Verdict:
    """Return the message of a verdict, with the sequence number and the lease (seconds) that it is sent with."""
    return pb.Verdict(
        subject=_subject(verdict.subject),
        state=_STATES[verdict.state],
        generation=verdict.generation,
        sequence=sequence,
        lease_s=lease_s,
        heal_s=verdict.heal_s,
        evidence=[_evidence(family) for family in verdict.evidence],
        new_mac=verdict.new_mac,
    )


def subject_name(subject: Subject) -> str:
    """Return a subject as text for a log."""
    match subject:
        case ConnectionSubject(id=id):
            return f"connection {id}"
        case LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip):
            return f"link {format_ip(proxy_ip)}-{format_ip(lb_ip)}"
        case TargetSubject(ip=ip):
            return f"target {format_ip(ip)}"


def _subject(subject: Subject) -> pb.Subject:
    match subject:
        case ConnectionSubject():
            whole = pb.ConnectionSubject(
                id=subject.id,
                lb_ips=[format_ip(ip) for ip in subject.lb_ips],
                peer_ips=[format_ip(ip) for ip in subject.peer_ips],
            )
            return pb.Subject(connection=whole)
        case LinkSubject():
            link = pb.LinkSubject(lb_ip=format_ip(subject.lb_ip), proxy_ip=format_ip(subject.proxy_ip))
            return pb.Subject(link=link)
        case TargetSubject():
            return pb.Subject(target_ip=format_ip(subject.ip))


def _evidence(family: FamilyEvidence) -> pb.FamilyEvidence:
    message = pb.FamilyEvidence(
        family=4 if family.ipv4 else 6,
        sent=family.sent,
        received=family.received,
        rtt_min_s=family.rtt_min_s,
        rtt_median_s=family.rtt_median_s,
        rtt_max_s=family.rtt_max_s,
    )
    if family.since_reply_s is not None:
        message.since_reply_s = family.since_reply_s
    return message
