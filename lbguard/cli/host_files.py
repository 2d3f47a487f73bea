"""Checks of files: nfqlb's memory, sockets, certificates and directories. They change nothing."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from lbguard.cli.host import Finding, Host, Severity
from lbguard.core.model import StreamSpec
from lbguard.errors import StartError
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.model import Settings

_CERTIFICATES = ("tls_cert", "tls_key", "tls_ca", "tls_client_ca")
_CERTIFICATE_BYTES_MAX = 2**20


def check_memory(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check the memory files of nfqlb: one per stream, or all existing ones if the streams are not known yet."""
    kind, directory = settings.distributor.kind, settings.distributor.shm_dir
    if kind not in {"nfqlb-shm", "auto"}:
        return
    paths = {directory / stream.shm_name: f" (stream {stream.name})" for stream in streams}
    if settings.source != "file":
        by_name = settings.flavour == "meridio-2" or (settings.source == "kubernetes" and settings.kubernetes.gateway)
        named = "*" if by_name else "tshm-*"
        paths |= {directory / place.name: "" for place in sorted(host.path(directory).glob(named))}
        if not paths:
            paths[directory / named] = ""
    for path, whose in paths.items():
        place = host.path(path)
        try:
            status = place.stat()
        except OSError:
            if kind == "nfqlb-shm" or settings.source == "interposer":
                yield Finding(
                    id="memory_missing",
                    severity="warning",
                    what=f"{path}{whose} does not exist: nfqlb has not made it, or it is not shared",
                    remedy=f"mount the same memory-backed volume at {path.parent} in both containers",
                )
            continue
        if not stat.S_ISREG(status.st_mode) or not os.access(place, os.R_OK | os.W_OK):
            yield Finding(
                id="memory_not_writable",
                severity="error" if settings.mode == "enforce" else "warning",
                what=(
                    f"{path}{whose} cannot be written: it belongs to uid {status.st_uid}, mode"
                    f" {stat.S_IMODE(status.st_mode):04o}, and lbguard runs as uid {os.geteuid()}"
                ),
                remedy=f"run lbguard as uid {status.st_uid}, or add the capability DAC_OVERRIDE",
            )


def check_socket(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the sockets that lbguard serves can be made; their directories are made with them."""
    for name, path in (("socket", settings.socket), ("availability.socket", settings.availability.socket)):
        if path is None:
            continue
        # The service runs without the frontend's socket, and tries to make it again.
        severity: Severity = "error" if name == "socket" else "warning"
        why = _why_unwritable(host, path.parent)
        if why:
            yield Finding(
                id="socket_directory",
                severity=severity,
                what=f"{name} {path} cannot be made: {why}",
                remedy=f"make {path.parent} writable for this user, or set {name} to another path",
            )
        elif _is_taken(host.path(path)):
            yield Finding(
                id="socket_directory",
                severity=severity,
                what=f"{name} = {path}: the path exists and is not a socket",
                remedy=f"remove {path}, or set {name} to another path",
            )


def check_verdict_certificates(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check the certificates of the listener for verdicts."""
    verdicts = settings.verdicts
    files = (verdicts.tls_cert, verdicts.tls_key, verdicts.tls_client_ca)
    chain, key, roots = (None if path is None else host.path(path) for path in files)
    if not verdicts.listen or chain is None or key is None or roots is None:
        return
    # This import loads gRPC, which a service without the listener loads later, and `check-config` does not need.
    from lbguard.rpc.security import CertificateFiles, CredentialsError

    try:
        CertificateFiles(chain, key, roots).current()
    except CredentialsError as error:
        yield Finding(
            id="verdict_certificates",
            severity="error",
            what=f"verdicts.listen {verdicts.listen} cannot be served: {error}",
            remedy="mount certificate, key and authorities as PEM files that belong together, or leave it empty",
        )


def check_certificates(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether certificates and keys can be read."""
    groups = {"verdicts": settings.verdicts, "nsp": settings.nsp, "nsm": settings.nsm, "probe": settings.probe}
    groups["probe.nsm"] = settings.probe.nsm
    if settings.verdicts.listen:
        del groups["verdicts"]  # checked as a whole by check_verdict_certificates
    for group, values in groups.items():
        for name in _CERTIFICATES:
            path = getattr(values, name, None)
            if path is None:
                continue
            try:
                read_regular_file(host.path(path), _CERTIFICATE_BYTES_MAX)
            except FileError as error:
                yield Finding(
                    id="certificate_unreadable",
                    severity="warning",
                    what=f"{group}.{name} {path} {error}",
                    remedy="mount the certificate there, readable for this user, or correct the path",
                )


def check_recording(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether recordings can be written."""
    directory = settings.recording.directory
    why = settings.recording.enabled and _why_unwritable(host, directory)
    if why:
        yield Finding(
            id="recording_directory",
            severity="warning",
            what=f"nothing can be recorded in recording.directory {directory}: {why}",
            remedy=f"mount a volume at {directory} that this user may write, or set recording.directory to one",
        )


def check_interposer(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether calls of nfqlb can be received."""
    directory = settings.interposer.directory
    why = settings.source == "interposer" and _why_unwritable(host, directory)
    if why:
        yield Finding(
            id="interposer_directory",
            severity="warning",
            what=f"no calls can be received in interposer.directory {directory}: {why}",
            remedy=f"mount one volume at {directory} of both containers, writable for this user",
        )


def _is_taken(place: Path) -> bool:
    try:
        return not stat.S_ISSOCK(place.lstat().st_mode)
    except OSError:
        return False


def check_kubernetes(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check what source kubernetes needs: its client, the address of the API server, the token and its file."""
    if settings.source != "kubernetes":
        return
    # This import concerns no other source.
    from lbguard.service.build_kubernetes import api_address, check_client, identifiers_path

    for check in (check_client, lambda: api_address(settings.kubernetes)):
        try:
            check()
        except StartError as error:
            what, _, remedy = str(error).rpartition(": ")
            yield Finding(id="kubernetes_client", severity="error", what=what, remedy=remedy)
    kubernetes = settings.kubernetes
    names = ["token"] if kubernetes.namespace else ["token", "namespace"]
    for path in [kubernetes.kubeconfig] if kubernetes.kubeconfig else [kubernetes.account / name for name in names]:
        try:
            read_regular_file(host.path(path), _CERTIFICATE_BYTES_MAX)
        except FileError as error:
            yield Finding(
                id="kubernetes_account",
                severity="warning",
                what=f"{path} {error}",
                remedy="give the pod a service account with its token (automountServiceAccountToken), or set"
                " kubernetes.account or kubernetes.kubeconfig",
            )
    path = identifiers_path(settings)
    why = _why_unwritable(host, path.parent) if path.parent != settings.socket.parent else ""
    if why:
        yield Finding(
            id="kubernetes_identifiers",
            severity="warning",
            what=f"identifiers cannot be kept in {path}, so targets may get others after a restart: {why}",
            remedy=f"make {path.parent} writable for this user, or set kubernetes.identifiers to another path",
        )


def _why_unwritable(host: Host, directory: Path) -> str:
    """Return why no file can be made in a directory, or empty text if it can. Missing parents count as makeable."""
    nearest = directory
    while not host.path(nearest).exists() and nearest != nearest.parent:
        nearest = nearest.parent
    place = host.path(nearest)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ""
    return f"uid {os.geteuid()} may not write to a directory {nearest}"
