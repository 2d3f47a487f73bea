import logging
import os
from pathlib import Path

import pytest

from lbguard.rpc.security import MAX_BYTES, CertificateFiles, CredentialsError, Material, names_of, server_credentials
from tests.unit.api.certificates import Authority, Issued


class Files:
    """A directory of certificates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(self.authority.root)
        self.issued = self.authority.issue(dns=("lb.test",))
        self.chain, self.key = self.issued.write(directory)

    @property
    def source(self) -> CertificateFiles:
        return CertificateFiles(self.chain, self.key, self.ca)

    def renew(self) -> Issued:
        self.issued = self.authority.issue(dns=("lb.test",))
        self.issued.write(self.directory)
        return self.issued


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_files_are_read_once_until_they_change(files: Files) -> None:
    source = files.source
    first = source.current()
    assert first == Material(files.issued.key, files.issued.chain, files.authority.root)
    assert source.current() is first
    renewed = files.renew()
    assert source.current() == Material(renewed.key, renewed.chain, files.authority.root)


def test_a_swapped_directory_is_a_change(tmp_path: Path) -> None:
    """Kubernetes mounts a secret as links through `..data`, and renews it by swapping that one link."""
    authority = Authority()
    issued = [authority.issue(dns=("lb.test",)) for _ in range(2)]
    for number, certificate in enumerate(issued):
        directory = tmp_path / f"..{number}"
        directory.mkdir()
        certificate.write(directory)
        (directory / "ca.crt").write_bytes(authority.root)
    data = tmp_path / "..data"
    data.symlink_to("..0")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    source = CertificateFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    assert source.current().chain == issued[0].chain
    swapped = tmp_path / "..data.new"
    swapped.symlink_to("..1")
    swapped.rename(data)
    assert source.current().chain == issued[1].chain


def test_half_of_a_renewal_is_not_taken(files: Files) -> None:
    source = files.source
    source.current()
    renewed = files.authority.issue(dns=("lb.test",))
    files.chain.write_bytes(renewed.chain)
    with pytest.raises(CredentialsError, match=r"verdicts\.tls_cert = .*key values mismatch"):
        source.current()
    files.key.write_bytes(renewed.key)
    assert source.current().chain == renewed.chain


@pytest.mark.parametrize("name", ["chain", "key", "ca"])
@pytest.mark.parametrize("fault", ["missing", "empty", "nonsense", "fifo", "huge"])
def test_what_cannot_be_used_is_named(files: Files, name: str, fault: str) -> None:
    path: Path = getattr(files, name)
    match fault:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "huge":
            os.truncate(path, MAX_BYTES + 1)
        case _:
            path.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    with pytest.raises(CredentialsError) as caught:
        files.source.current()
    assert str(path) in str(caught.value)


def test_an_encrypted_key_is_refused_and_asks_nobody(files: Files) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(files.issued.key, None)
    encryption = BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(CredentialsError, match=str(files.key)):
        files.source.current()


def test_no_listener_without_certificates(files: Files) -> None:
    files.key.unlink()
    with pytest.raises(CredentialsError, match="No such file"):
        server_credentials(files.source)


def test_credentials_are_made_from_what_is_there(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert server_credentials(files.source) is not None
    assert not caplog.records


def test_names_come_from_the_certificate_whole_and_the_spiffe_id_first() -> None:
    spiffe_id = "spiffe://example.org/proxy"
    issued = Authority().issue(uris=(spiffe_id,), dns=("proxy.test", "a.proxies.test\0.evil.test", "b.test"))
    context = {
        # What gRPC makes of the names: each ends at its first zero byte.
        "peer_dns": [b"proxy.test", b"a.proxies.test", b"b.test"],
        "peer_spiffe_id": [spiffe_id.encode()],
        "x509_common_name": [b"anything"],
        "x509_pem_cert": [issued.chain],
    }
    assert names_of(context) == (spiffe_id, "dns:proxy.test", "dns:b.test")
    assert names_of({"peer_dns": [b"proxy.test"], "x509_common_name": [b"anything"]}) == ()
