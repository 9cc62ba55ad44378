"""Certificates, and the files they are in."""

import stat

import pytest
from cryptography import x509

from fabric.api.tls import TlsFiles, ensure_certificate
from fabric.errors import InvalidConfig


def names_of(file):
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_a_certificate_names_loopback_and_the_hosts_asked_for(tmp_path):
    files = ensure_certificate(tmp_path, hosts=["gate.example", "10.0.0.7"])
    assert names_of(files.cert) == {"localhost", "127.0.0.1", "::1", "gate.example", "10.0.0.7"}


def test_only_their_owner_reads_the_keys(tmp_path):
    ensure_certificate(tmp_path)
    for key in (tmp_path / "tls").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert len(list((tmp_path / "tls").glob("*.key"))) == 2


def test_a_certificate_is_kept_until_it_lacks_a_name_and_the_authority_stays(tmp_path):
    first = ensure_certificate(tmp_path)
    cert, ca = first.cert.read_bytes(), first.ca.read_bytes()
    assert ensure_certificate(tmp_path).cert.read_bytes() == cert
    again = ensure_certificate(tmp_path, hosts=["gate.example"])
    assert again.cert.read_bytes() != cert
    assert again.ca.read_bytes() == ca


def test_a_certificate_that_soon_ends_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.api.tls._CERT_DAYS", 10)
    cert = ensure_certificate(tmp_path).cert.read_bytes()
    monkeypatch.undo()
    assert ensure_certificate(tmp_path).cert.read_bytes() != cert


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"mine\.key"):
        TlsFiles(cert=tmp_path / "mine.pem", key=tmp_path / "mine.key").read()
