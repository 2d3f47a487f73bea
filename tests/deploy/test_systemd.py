"""The systemd unit: checked by systemd's own tools, and run by a real systemd in namespaces of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lbguard.recording.format import SUFFIX
from tests.deploy.charts import ROOT

UNIT = ROOT / "deploy/systemd/lbguard.service"
EXPOSURE_MAX = 30
"""Of `systemd-analyze security`, times ten: 2.6 is for what the unit is for, that is the network."""

# Mounts hide what the run writes, so that nothing of it is left on this machine.
MACHINE = """\
set -eu
mount --make-rprivate /
for place in /run /opt /var/lib /tmp; do mount -t tmpfs tmpfs $place; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system/lbguard.service.d /run/etc/lbguard
mkdir -p /opt/lbguard/bin /opt/lbguard/packages /opt/lbguard/source
mount --bind "$PACKAGES" /opt/lbguard/packages
mount --bind "$SOURCE" /opt/lbguard/source
mount -t overlay overlay -o lowerdir=/run/etc:/etc /etc || mount --bind /run/etc/lbguard /etc/lbguard
cat >/opt/lbguard/bin/lbguard <<END
#!/usr/bin/python3
import sys
sys.path[:0] = ["/opt/lbguard/source", "/opt/lbguard/packages"]
from lbguard.cli.main import main
main()
END
chmod 755 /opt/lbguard/bin/lbguard
cat >/run/etc/lbguard/lbguard.yaml <<END
{targets_file: /etc/lbguard/targets.yaml, log: {format: text}, affinity: {mode: all}, recording: {enabled: true}}
END
cat >/run/etc/lbguard/targets.yaml <<END
streams: [{name: stream-a, vips: [20.0.0.1/32], targets: [{identifier: 1, ips: [172.16.0.10/32]}]}]
END
ip link set lo up
ip link add nsm0 type veth peer name peer0
ip addr add 172.16.0.2/24 dev nsm0
ip link set nsm0 up
ip link set peer0 up
cp "$UNIT" /run/systemd/system/lbguard.service
cat >/run/systemd/system/lbguard.service.d/log.conf <<END
[Unit]
DefaultDependencies=no
[Service]
StandardOutput=file:$OUT/guard
StandardError=file:$OUT/guard
END
cat >/run/systemd/system/asker.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=file:$OUT/asker
StandardError=file:$OUT/asker
ExecStart=/bin/sh /run/asker
END
cat >/run/systemd/system/machine.target <<END
[Unit]
DefaultDependencies=no
Wants=lbguard.service asker.service
END
cat >/run/asker <<'END'
ask() { for n in $(seq 60); do /opt/lbguard/bin/lbguard health --ready && return; sleep 1; done; }
ask
/opt/lbguard/bin/lbguard status
nft list tables
systemctl reload lbguard
systemctl restart lbguard
ask
/opt/lbguard/bin/lbguard status
ls /var/lib/lbguard/recording
systemctl show lbguard --property User --property DynamicUser
systemctl stop lbguard
systemctl show lbguard --property Result --property NRestarts
ip rule
systemctl exit 0
END
export container=unshare
exec /lib/systemd/systemd --unit=machine.target --log-target=console
"""


def analyze(*argv: str | Path) -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([tool, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "lbguard.service"
    unit.write_text(UNIT.read_text().replace("/opt/lbguard/bin/lbguard", "/bin/true"))
    assert "lbguard.service:" not in analyze("verify", "--man=no", unit)


def test_little_is_exposed() -> None:
    said = analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", UNIT)
    assert "Overall exposure level" in said


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_service_works_under_its_hardening(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists() or shutil.which("unshare") is None:
        pytest.skip("needs root, systemd and unshare")
    version = "import sys; print(sys.version_info[:2])"
    python = subprocess.run(["/usr/bin/python3", "-c", version], capture_output=True, text=True, check=False)
    if python.stdout.strip() != str(tuple(sys.version_info[:2])):
        pytest.skip("the machine's own Python, which the service can reach, is of another version")
    out = Path("/dev/shm") / f"lbguard-systemd-{os.getpid()}"  # a place that the machine's mounts leave as it is
    out.mkdir(mode=0o755)
    env = {
        **os.environ,
        "PACKAGES": sysconfig.get_path("purelib"),
        "SOURCE": str(ROOT),
        "UNIT": str(UNIT),
        "OUT": str(out),
    }
    spaces = ["--pid", "--mount", "--cgroup", "--net", "--ipc", "--uts"]
    argv = ["unshare", "--fork", "--kill-child", *spaces, "--mount-proc", "sh", "-c", MACHINE]
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
        said, log = ((out / name).read_text() if (out / name).exists() else "" for name in ("asker", "guard"))
    finally:
        shutil.rmtree(out)
    if not said and not log:
        pytest.skip(f"no systemd can be run here: {done.stderr.strip()[-200:]}")
    assert said.count("stream-a/1  active") == 2, said + log
    assert "affinity in force" in said, said + log
    for table in ("lbguard", "lbguard-affinity"):
        assert f"table inet {table}\n" in said
    assert SUFFIX in said, "recordings are in the state directory"
    assert "DynamicUser=yes" in said
    assert "Result=success" in said
    assert "NRestarts=0" in said
    assert "lookup 5001 proto 152" in said, "a stop leaves the rules in place"
    assert "refused" not in log
