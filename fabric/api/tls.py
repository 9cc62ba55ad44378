"""Certificates for the doors: a small authority of the fabric's own in the state directory, or the operator's files.

The authority's key signs server certificates and is used for nothing else. A server certificate names loopback and the
hosts it was asked for, and is made anew when it lacks one of them or has less than 30 days to live. Key files are
readable by their owner only.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fabric.errors import InvalidConfig

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_CA_DAYS: Final = 3650
_CERT_DAYS: Final = 365
_RENEW_DAYS: Final = 30
_SKEW: Final = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPems:
    """A server's certificate and key themselves, for a door in another process."""

    cert: bytes
    key: bytes = field(repr=False)

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server."""
        return grpc.ssl_server_credentials([(self.key, self.cert)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of one server. `ca` is what clients trust; None where the system's authorities vouch for it."""

    cert: Path
    key: Path
    ca: Path | None = None

    def read(self) -> TlsPems:
        """What is in the files.

        Raises:
            InvalidConfig: a file can't be read.
        """
        try:
            return TlsPems(key=self.key.read_bytes(), cert=self.cert.read_bytes())
        except OSError as error:
            raise InvalidConfig(f"can't read the TLS file {error.filename}: {error.strerror}", code="no_tls") from None


def ensure_certificate(state_dir: Path, *, hosts: Sequence[str] = (), name: str = "server") -> TlsFiles:
    """The server certificate of that name kept in `state_dir`/tls, made or renewed where needed. Clients trust its `ca`."""
    folder = state_dir / "tls"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = TlsFiles(cert=folder / f"{name}.pem", key=folder / f"{name}.key", ca=folder / "ca.pem")
    assert files.ca is not None
    names = tuple(dict.fromkeys((*LOOPBACK, *hosts)))
    ca_key_file = folder / "ca.key"
    if not (files.ca.exists() and ca_key_file.exists()):
        _make_authority(files.ca, ca_key_file)
        files.cert.unlink(missing_ok=True)
    if not _still_good(files, names):
        _make_server(files, ca_file=files.ca, ca_key_file=ca_key_file, names=names)
    return files


def _make_authority(cert_file: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token-fabric authority")])
    certificate = (
        _builder(subject=name, issuer=name, public_key=key.public_key(), days=_CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_file, key)
    _write(cert_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _make_server(files: TlsFiles, *, ca_file: Path, ca_key_file: Path, names: Sequence[str]) -> None:
    authority = x509.load_pem_x509_certificate(ca_file.read_bytes())
    authority_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token-fabric")])
    certificate = (
        _builder(subject=subject, issuer=authority.subject, public_key=key.public_key(), days=_CERT_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    _write_key(files.key, key)
    _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(
    *, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _still_good(files: TlsFiles, names: Sequence[str]) -> bool:
    if not (files.cert.exists() and files.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return left.days >= _RENEW_DAYS and all(_general_name(name) in named for name in names)


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(file, pem, mode=0o600)


def _write(file: Path, data: bytes, *, mode: int) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(data)
    fresh.replace(file)
