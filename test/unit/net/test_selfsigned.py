"""The certificate of a first try: two files, a private key, nothing replaced."""

import stat

from cryptography import x509

from mailgate.net.selfsigned import main


def test_writes_a_certificate_for_localhost_and_a_key_only_its_owner_reads(tmp_path):
    cert, key = tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem"
    assert main([str(cert), str(key)]) == 0
    leaf = x509.load_pem_x509_certificate(cert.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_key_that_is_there_is_never_replaced(tmp_path, capsys):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    key.write_text("mine")
    assert main([str(cert), str(key)]) == 73
    assert key.read_text() == "mine"
    assert not cert.exists()
    assert str(key) in capsys.readouterr().err


def test_wrong_usage_is_told(capsys):
    assert main([]) == 64
    assert "usage" in capsys.readouterr().err
