"""Verdicts and connections that several tests tell about."""

from ipaddress import ip_address

from lbguard.core.model import ConnectionSubject, FamilyEvidence, Subject, TargetSubject, Verdict, VerdictState


def ip(text: str) -> bytes:
    """Return a packed address."""
    return ip_address(text).packed


def connection_subject(id: str = "a", lb: str = "172.16.0.1", ours: str = "172.16.0.2") -> ConnectionSubject:
    """Return a connection with one address at each end."""
    return ConnectionSubject(id=id, lb_ips=(ip(lb),), peer_ips=(ip(ours),))


def target_subject(text: str = "172.16.0.10") -> TargetSubject:
    """Return a target."""
    return TargetSubject(ip=ip(text))


def verdict(
    subject: Subject | None = None,
    state: VerdictState = VerdictState.UP,
    *,
    generation: int = 1,
    sequence: int = 1,
    lease_s: float = 10.0,
    heal_s: float = 0.0,
    received: int = 4,
    new_mac: bytes = b"",
) -> Verdict:
    """Return a verdict with evidence of one family."""
    rtt_s = 0.001 if received else 0.0
    evidence = FamilyEvidence(
        ipv4=True, sent=4, received=received, rtt_min_s=rtt_s, rtt_median_s=rtt_s, rtt_max_s=rtt_s
    )
    return Verdict(
        subject=subject or connection_subject(),
        state=state,
        generation=generation,
        sequence=sequence,
        lease_s=lease_s,
        heal_s=heal_s,
        evidence=(evidence,),
        new_mac=new_mac,
    )
