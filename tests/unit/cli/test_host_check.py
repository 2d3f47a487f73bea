import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.cli.host import Finding, Host
from lbguard.cli.host_check import check_host
from lbguard.core.addr import Prefix, parse_ip, parse_prefix
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.settings.model import Settings, load

STREAM = StreamSpec(name="stream-a", shm_name="tshm-stream-a")
NSP = {"source": "nsp", "nsp__trench": "a", "nsp__conduit": "b"}
INTERPOSER = {"source": "interposer"}
ALL_CAPABILITIES = "CapEff:\t000001ffffffffff"


class Machine:
    """A fake machine on which nothing is wrong, until a test changes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.libraries = True
        self.affinity_refused = ""
        self.local: tuple[Prefix, ...] = ()
        self.write("proc/thread-self/status", f"Name:\tx\nCapPrm:\t0\n{ALL_CAPABILITIES}\n")
        self.write("proc/thread-self/net/unix", "Num RefCount\n0: 2 0 0 1 1 5 @other\n")
        for name, value in {
            "net/ipv4/ip_forward": "1",
            "net/ipv6/conf/all/forwarding": "1",
            "net/ipv4/fwmark_reflect": "1",
            "net/ipv6/fwmark_reflect": "1",
            "net/ipv4/conf/all/rp_filter": "0",
            "net/ipv4/conf/default/rp_filter": "0",
            "net/ipv4/conf/eth0/rp_filter": "0",
            "net/ipv4/conf/lo/rp_filter": "1",
        }.items():
            self.sysctl(name, value)
        (root / "run").mkdir()
        self.write("usr/bin/nfqlb", "")
        (root / "usr/bin/nfqlb").chmod(0o755)

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def sysctl(self, name: str, value: str) -> None:
        self.write(f"proc/sys/{name}", f"{value}\n")

    def findings(self, **flags: str) -> tuple[Finding, ...]:
        settings: Settings = load(flags={name.replace("__", "."): value for name, value in flags.items()}).settings
        host = Host(self.root, lambda library: self.libraries, lambda: self.local, lambda: self.affinity_refused)
        return check_host(settings, (STREAM,), host)

    def ids(self, **flags: str) -> list[str]:
        return [finding.id for finding in self.findings(**flags)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_in_order(machine: Machine) -> None:
    assert machine.findings() == ()


def test_an_unreadable_machine_raises_no_alarm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert check_host(load().settings, (), Host(tmp_path, lambda library: True, lambda: ())) == ()


@pytest.mark.parametrize(
    ("name", "value", "expected", "remedy"),
    [
        ("net/ipv4/ip_forward", "0", "ipv4_forwarding_off", "sysctl -w net.ipv4.ip_forward=1"),
        ("net/ipv6/conf/all/forwarding", "0", "ipv6_forwarding_off", "sysctl -w net.ipv6.conf.all.forwarding=1"),
        ("net/ipv4/fwmark_reflect", "0", "ipv4_fwmark_reflect_off", "sysctl -w net.ipv4.fwmark_reflect=1"),
        ("net/ipv6/fwmark_reflect", "0", "ipv6_fwmark_reflect_off", "sysctl -w net.ipv6.fwmark_reflect=1"),
        ("net/ipv4/conf/eth0/rp_filter", "1", "strict_rp_filter", "sysctl -w net.ipv4.conf.all.rp_filter=2"),
        ("net/ipv4/conf/default/rp_filter", "1", "strict_rp_filter", "sysctl -w net.ipv4.conf.all.rp_filter=2"),
        ("net/ipv4/conf/all/rp_filter", "1", "strict_rp_filter", "sysctl -w net.ipv4.conf.all.rp_filter=2"),
    ],
)
def test_a_wrong_sysctl_is_named_with_its_remedy(
    machine: Machine, name: str, value: str, expected: str, remedy: str
) -> None:
    machine.sysctl(name, value)
    (finding,) = machine.findings()
    assert (finding.id, finding.severity) == (expected, "warning")
    assert remedy in finding.remedy


def test_loose_everywhere_overrules_strict_links(machine: Machine) -> None:
    machine.sysctl("net/ipv4/conf/eth0/rp_filter", "1")
    machine.sysctl("net/ipv4/conf/all/rp_filter", "2")
    assert machine.ids() == []


def test_many_strict_links_are_one_finding(machine: Machine) -> None:
    for number in range(20):
        machine.sysctl(f"net/ipv4/conf/lb-{number:02}/rp_filter", "1")
    (finding,) = machine.findings()
    assert "lb-00, lb-01, lb-02, lb-03, lb-04 and 15 more" in finding.what


def test_a_link_name_that_is_not_utf8_can_be_printed(machine: Machine) -> None:
    machine.sysctl(f"net/ipv4/conf/{os.fsdecode(bytes([255, 254]))}/rp_filter", "1")
    (finding,) = machine.findings()
    assert r"filtering on \xff\xfe:" in finding.what


def test_missing_capabilities_are_errors_unless_observing(machine: Machine) -> None:
    machine.write("proc/thread-self/status", f"CapEff:\t{1 << 12:016x}\n")
    assert machine.ids() == ["no_cap_net_raw"]
    machine.write("proc/thread-self/status", "CapEff:\t0000000000000000\n")
    assert machine.ids() == ["no_cap_net_admin", "no_cap_net_raw"]
    assert machine.ids(mode="observe") == []


@pytest.mark.parametrize(("kind", "severity"), [("nftables", "error"), ("auto", "warning")])
def test_the_library_is_needed_by_some(machine: Machine, kind: str, severity: str) -> None:
    machine.libraries = False
    (finding,) = machine.findings(distributor__kind=kind)
    assert (finding.id, finding.severity) == ("no_nftables", severity)
    assert "apt-get install libnftables1" in finding.remedy


def test_the_memory_must_be_there_when_it_is_asked_for(machine: Machine) -> None:
    assert machine.ids(distributor__kind="nfqlb-shm") == ["memory_missing"]
    machine.write("dev/shm/tshm-stream-a", "")
    assert machine.ids(distributor__kind="nfqlb-shm") == []


@pytest.mark.parametrize("source", [NSP, INTERPOSER])
def test_the_memory_is_looked_at_where_streams_are_told_later(machine: Machine, source: dict[str, str]) -> None:
    def findings(**flags: str) -> list[tuple[str, str]]:
        settings = load(flags={name.replace("__", "."): value for name, value in (source | flags).items()}).settings
        found = check_host(settings, (), Host(machine.root, lambda library: True, lambda: ()))
        return [(finding.id, finding.severity) for finding in found]

    missing = [("memory_missing", "warning")]
    assert findings(distributor__kind="nfqlb-shm") == missing
    # With `auto`, the registry's streams may be nftables'; a load balancer whose calls we take has nfqlb.
    assert findings() == ([] if source is NSP else missing)
    (machine.root / "dev/shm/tshm-other").mkdir(parents=True)
    assert findings() == [("memory_not_writable", "error")]
    (machine.root / "dev/shm/tshm-other").rmdir()
    machine.write("dev/shm/tshm-other", "")
    assert findings(distributor__kind="nfqlb-shm") == findings() == []


def test_memory_that_is_no_file_is_an_error(machine: Machine) -> None:
    (machine.root / "dev/shm/tshm-stream-a").mkdir(parents=True)
    (finding,) = machine.findings()
    assert (finding.id, finding.severity) == ("memory_not_writable", "error")


def as_nobody(action: Callable[[], str]) -> str:
    """Run an action in a child process as an unprivileged user and return its text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, action().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_memory_of_another_user_names_the_owner(machine: Machine) -> None:
    machine.write("dev/shm/tshm-stream-a", "")
    (machine.root / "dev/shm/tshm-stream-a").chmod(0o600)
    for directory in (machine.root, *machine.root.parents):
        if directory.stat().st_uid == 0 and directory.name.startswith(("pytest", "popen", "test")):
            directory.chmod(0o755)
    text = as_nobody(lambda: "\n".join(finding.what + finding.remedy for finding in machine.findings()))
    assert "belongs to uid 0, mode 0600, and lbguard runs as uid 65534" in text
    assert "DAC_OVERRIDE" in text
    assert "socket /run/lbguard/lbguard.sock cannot be made" in text


def test_another_instance_is_an_error(machine: Machine) -> None:
    machine.write("proc/thread-self/net/unix", "Num\n0: 2 0 10000 1 1 5 @lbguard.instance\n")
    (finding,) = machine.findings()
    assert (finding.id, finding.severity) == ("another_instance", "error")


def test_the_socket_needs_a_directory(machine: Machine) -> None:
    machine.write("run/lbguard", "a file")
    (finding,) = machine.findings()
    assert (finding.id, finding.severity) == ("socket_directory", "error")
    assert "/run/lbguard" in finding.what


def test_the_listener_for_verdicts_needs_certificates_that_can_be_read(machine: Machine) -> None:
    files = {f"verdicts__{name}": f"/etc/tls/{name}" for name in ("tls_cert", "tls_key", "tls_client_ca")}
    assert {finding.severity for finding in machine.findings(**files)} == {"warning"}
    (finding,) = machine.findings(verdicts__listen=":7443", **files)
    assert (finding.id, finding.severity) == ("verdict_certificates", "error")
    assert finding.what.startswith("verdicts.listen :7443 cannot be served: ")
    assert finding.what.endswith("/etc/tls/tls_cert: No such file or directory")
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        machine.write(f"etc/tls/{name}", "no certificate")
    assert "not usable" in machine.findings(verdicts__listen=":7443", **files)[0].what


@pytest.mark.parametrize("name", ["socket", "availability.socket"])
def test_a_socket_needs_a_place_that_nothing_else_has(machine: Machine, name: str) -> None:
    machine.write("run/other/taken", "a file")
    (finding,) = machine.findings(**{name.replace(".", "__"): "/run/other/taken"})
    assert (finding.id, finding.severity) == ("socket_directory", "error" if name == "socket" else "warning")
    assert finding.what == f"{name} = /run/other/taken: the path exists and is not a socket"
    assert finding.remedy == f"remove /run/other/taken, or set {name} to another path"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("recording_directory", {"recording__enabled": "true", "recording__directory": "/srv/a/b"}),
        ("interposer_directory", {"source": "interposer", "interposer__directory": "/srv/a/b"}),
    ],
)
def test_what_is_written_needs_a_directory(machine: Machine, name: str, flags: dict[str, str]) -> None:
    machine.write("dev/shm/tshm-stream-a", "")
    assert machine.ids(**flags) == [], "it is made with its parents"
    machine.write("srv/a", "a file")
    (finding,) = machine.findings(**flags)
    assert (finding.id, finding.severity) == (name, "warning")
    assert "/srv/a" in finding.what
    assert machine.ids() == []


KUBERNETES = {"source": "kubernetes", "kubernetes__services": "web", "kubernetes__url": "https://api:6443"}
ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"


def test_source_kubernetes_needs_an_account(machine: Machine) -> None:
    (token, namespace) = machine.findings(**KUBERNETES)
    assert (token.id, token.severity) == ("kubernetes_account", "warning")
    assert f"/{ACCOUNT}/token" in token.what
    assert f"/{ACCOUNT}/namespace" in namespace.what
    machine.write(f"{ACCOUNT}/token", "x")
    assert machine.ids(**KUBERNETES, kubernetes__namespace="default") == []


def test_source_kubernetes_needs_an_address_and_a_directory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("srv/a", "a file")
    machine.write("etc/kubeconfig", "{}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    no_address = {**KUBERNETES, "kubernetes__url": "", "kubernetes__namespace": "default"}
    machine.write(f"{ACCOUNT}/token", "x")
    (finding,) = machine.findings(**no_address)
    assert (finding.id, finding.severity) == ("kubernetes_client", "error")
    assert finding.remedy == "set kubernetes.url or kubernetes.kubeconfig"
    assert machine.ids(**no_address, kubernetes__kubeconfig="/etc/kubeconfig") == []
    (finding,) = machine.findings(
        **{**KUBERNETES, **no_address, "kubernetes__url": "https://api"}, kubernetes__identifiers="/srv/a/b/c"
    )
    assert finding.id == "kubernetes_identifiers"


def test_errors_come_first(machine: Machine) -> None:
    machine.sysctl("net/ipv4/ip_forward", "0")
    machine.write("proc/thread-self/net/unix", "0: 2 0 10000 1 1 5 @lbguard.instance\n")
    assert machine.ids() == ["another_instance", "ipv4_forwarding_off"]


def test_a_neighbour_table_too_small_for_the_targets(machine: Machine) -> None:
    stream = StreamSpec(
        name="a", targets=tuple(TargetSpec(identifier=i, ips=(bytes([10, 0, i >> 8, i & 255]),)) for i in range(1, 801))
    )
    for family in ("ipv4", "ipv6"):
        machine.sysctl(f"net/{family}/neigh/default/gc_thresh3", "1024")
    (finding,) = check_host(load().settings, (stream,), Host(machine.root, lambda library: True, lambda: ()))
    assert finding.id == "ipv4_neighbor_table_small"
    assert "net.ipv4.neigh.default.gc_thresh3=4096" in finding.remedy


def test_vips_and_targets_that_are_addresses_of_this_machine(machine: Machine) -> None:
    stream = StreamSpec(
        name="a",
        vips=tuple(map(parse_prefix, ("20.0.0.1/32", "20.0.1.0/24", "20.0.2.0/24", "2000::1/128", "2000::2/128"))),
        targets=tuple(
            TargetSpec(identifier=n, ips=(parse_ip(ip),)) for n, ip in enumerate(("172.16.0.10", "172.16.0.2"), 1)
        ),
    )
    local = (
        "127.0.0.0/8",
        "20.0.0.1/32",
        "20.0.1.7/32",
        "2000::/127",
        "172.16.0.2/32",
        "172.16.0.255/32",
        "fe80::1/128",
    )
    host = Host(machine.root, lambda library: True, lambda: map(parse_prefix, local))
    found = check_host(load().settings, (stream,), host)
    assert [finding.id for finding in found] == ["vip_is_local"] * 3 + ["target_is_local"]
    assert {finding.severity for finding in found} == {"warning"}
    text = " ".join(finding.what for finding in found)
    assert all(
        words in text for words in ("VIP 20.0.0.1/32", "VIP 20.0.1.0/24", "VIP 2000::1/128", "target 172.16.0.2 ")
    )
    assert "2000::2" not in text


def test_a_kernel_that_does_not_tell_its_local_addresses_raises_no_alarm(machine: Machine) -> None:
    def refuse() -> tuple[Prefix, ...]:
        raise PermissionError

    stream = StreamSpec(name="a", vips=(parse_prefix("20.0.0.1/32"),))
    assert check_host(load().settings, (stream,), Host(machine.root, lambda library: True, refuse)) == ()


def test_certificates_that_cannot_be_read(machine: Machine) -> None:
    for name in ("cert", "key"):
        machine.write(f"tls/{name}", "PEM")
    os.mkfifo(machine.root / "tls/ca")
    flags = {"verdicts__tls_cert": "/tls/cert", "verdicts__tls_key": "/tls/none", "verdicts__tls_client_ca": "/tls/ca"}
    found = machine.findings(**flags)
    assert [finding.severity for finding in found] == ["warning", "warning"]
    assert "verdicts.tls_key /tls/none cannot be read: No such file" in found[0].what
    assert "verdicts.tls_client_ca /tls/ca is a FIFO" in found[1].what
    nsp = {"nsp__tls_cert": "/tls/cert", "nsp__tls_key": "/tls/none", "nsp__tls_ca": "/tls/cert"}
    (finding,) = machine.findings(**nsp)
    assert (finding.id, finding.severity) == ("certificate_unreadable", "warning")


def test_a_kernel_that_refuses_flow_affinity_is_named_where_it_is_wanted(machine: Machine) -> None:
    machine.affinity_refused = "nftables: Error: Could not process rule: No such file or directory"
    assert machine.ids(affinity__mode="off") == []
    assert machine.ids(mode="observe", affinity__mode="incident") == []
    (finding,) = machine.findings()
    assert finding.severity == "warning"
    assert (finding.id, finding.severity) == ("affinity_refused", "warning")
    assert "Could not process rule" in finding.what
    assert "nft_fib_inet" in finding.remedy
    machine.affinity_refused = ""
    assert machine.ids(affinity__mode="incident") == []
    machine.libraries = False
    (finding,) = machine.findings(affinity__mode="incident", distributor__kind="nfqlb-shm", mode="enforce")[:1]
    assert finding.id == "no_nftables"
    assert "flow affinity will not work" in finding.what


def test_a_missing_device_is_named_where_packets_are_to_be_parked(machine: Machine) -> None:
    assert machine.ids(parking__enabled="false") == []
    assert machine.ids(mode="observe", parking__enabled="true") == []
    (finding,) = machine.findings(parking__enabled="true")
    assert (finding.id, finding.severity) == ("no_tun_device", "warning")
    assert "No such file" in finding.what
    machine.write("dev/net/tun", "")
    assert machine.ids(parking__enabled="true") == []
