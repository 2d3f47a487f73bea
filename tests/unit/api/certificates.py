"""A certificate authority for tests: certificates by the names that they carry, written as PEM files."""

import datetime
import inspect
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, PEM, and the certificate in DER with its key in PKCS#8 DER."""

    chain: bytes
    key: bytes
    chain_der: bytes
    key_der: bytes

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write `tls.crt` and `tls.key` into a directory, each in one step; returns their paths."""
        chain, key = directory / "tls.crt", directory / "tls.key"
        for path, content in ((key, self.key), (chain, self.chain)):
            beside = path.with_suffix(path.suffix + ".new")
            beside.write_bytes(content)
            beside.rename(path)
        return chain, key


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False) | allowed)


class Authority:
    """Signs certificates; `root` is its own, PEM."""

    def __init__(self, name: str = "authority of the test") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key(), days=1)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.root = certificate.public_bytes(serialization.Encoding.PEM)
        self.root_der = certificate.public_bytes(serialization.Encoding.DER)

    def issue(self, *, dns: tuple[str, ...] = (), uris: tuple[str, ...] = (), days: int = 1) -> Issued:
        """Sign a certificate for server and client use; with `days` below 0 it has expired already."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        names += [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = _builder(subject, self._name, key.public_key(), days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = _key_usage(digital_signature=True)
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(usage, critical=True).add_extension(both, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(
            chain=certificate.public_bytes(serialization.Encoding.PEM),
            key=_private(key, serialization.Encoding.PEM),
            chain_der=certificate.public_bytes(serialization.Encoding.DER),
            key_der=_private(key, serialization.Encoding.DER),
        )


def _private(key: ec.EllipticCurvePrivateKey, encoding: serialization.Encoding) -> bytes:
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
