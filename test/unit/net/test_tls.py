"""TLS contexts: certificates from text, choice by SNI, protocols and suites, whose certificate it is."""

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from mailgate.net.tls import (
    ClientTls,
    NameMismatch,
    TlsConfigError,
    load_certificates,
    pem,
    self_signed,
    server_tls,
)


@dataclass
class Settings:
    cert: str
    private_key: str
    subjects: tuple = ()
    default: bool = False


def settings(name, **more):
    chain, key = pem(self_signed(name))
    return Settings(chain.decode(), key.decode(), **more)


def carry(one, other):
    try:
        other.bio_write(one.bio_read(65536))
    except SSL.WantReadError:
        return False
    return True


def shake(server, client):
    """Run a handshake in memory; the two connections. Raises what OpenSSL raises."""
    theirs, ours = server.serverConnectionForTLS(None), client.clientConnectionForTLS(None)
    theirs.set_accept_state()
    ours.set_connect_state()
    moved = True
    while moved:
        for end in (ours, theirs):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                pass
        moved = carry(ours, theirs) | carry(theirs, ours)
    return theirs, ours


def shown(server, name):
    """The names in the certificate a client with this SNI is shown."""
    _, ours = shake(server, ClientTls().handshake(name, verify=False))
    return ours.get_peer_certificate(as_cryptography=True).subject.rfc4514_string().removeprefix("CN=")


@pytest.fixture(scope="module")
def own():
    return self_signed("gw.example.org")


def test_a_self_made_certificate_serves_and_is_agreed_on(own):
    client = ClientTls().handshake("gw.example.org", verify=False)
    _, ours = shake(server_tls([own]), client)
    agreed = client.check()
    assert (agreed.version, agreed.cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    assert ours.get_group_name() == "x25519"


def test_without_any_configured_certificate_one_is_made():
    (made,) = load_certificates({}, "gw.example.org")
    assert made.names == ("gw.example.org",)
    assert load_certificates({}, "[2001:db8::1]")[0].chain


def test_the_certificate_is_chosen_by_sni():
    loaded = load_certificates(
        {
            "one": settings("one.example.org"),
            "wild": settings("*.wild.example"),
            "default": settings("default.example.org", default=True, subjects=("Alias.example.org",)),
            "later": settings("one.example.org"),
        },
        "gw.test",
    )
    server = server_tls(loaded)
    assert shown(server, "one.example.org") == "one.example.org"
    assert shown(server, "ONE.example.org") == "one.example.org"
    assert shown(server, "host.wild.example") == "*.wild.example"
    assert shown(server, "deep.host.wild.example") == "default.example.org"
    assert shown(server, "alias.example.org") == "default.example.org"
    assert shown(server, "nobody.example") == "default.example.org"
    assert shown(server, "192.0.2.1") == "default.example.org"


def test_without_a_default_the_first_certificate_serves_strangers():
    loaded = load_certificates({"a": settings("a.test"), "b": settings("b.test")}, "gw.test")
    assert shown(server_tls(loaded), "nobody.example") == "a.test"


def test_faulty_texts_are_errors_that_name_the_key_and_no_secret():
    good, other = settings("a.test"), settings("b.test")
    with pytest.raises(TlsConfigError, match=r"certificate\.x\.cert"):
        load_certificates({"x": Settings("no pem", good.private_key)}, "gw.test")
    with pytest.raises(TlsConfigError, match=r"certificate\.x\.private-key") as caught:
        load_certificates({"x": Settings(good.cert, "s3cret")}, "gw.test")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(TlsConfigError, match="does not belong"):
        load_certificates({"x": Settings(good.cert, other.private_key)}, "gw.test")


@pytest.mark.parametrize("form", [serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8])
def test_keys_come_in_every_usual_form(own, form):
    chain, _ = pem(own)
    key = own.key.private_bytes(Encoding.PEM, form, serialization.NoEncryption())
    assert load_certificates({"x": Settings(chain.decode(), key.decode())}, "gw.test")[0].key is not None
    plain = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, form, serialization.NoEncryption())
    with pytest.raises(TlsConfigError):
        load_certificates({"x": Settings(chain.decode(), plain.decode())}, "gw.test")


def client_of(version):
    """A client that speaks one version only."""
    made = ClientTls().handshake("gw.example.org", verify=False)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    made._context = context
    return made


@pytest.mark.parametrize("disabled, left", [("TLSv1.2", SSL.TLS1_3_VERSION), ("0x0304", SSL.TLS1_2_VERSION)])
def test_a_disabled_protocol_is_refused(own, disabled, left):
    server = server_tls([own], disable_protocols=[disabled])
    shake(server, client_of(left))
    with pytest.raises(SSL.Error):
        shake(server, client_of(SSL.TLS1_2_VERSION if left == SSL.TLS1_3_VERSION else SSL.TLS1_3_VERSION))


def test_disabling_both_protocols_has_no_effect(own):
    server = server_tls([own], disable_protocols=["TLSv1.2", "TLSv1.3"])
    shake(server, client_of(SSL.TLS1_2_VERSION))
    shake(server, client_of(SSL.TLS1_3_VERSION))


def test_nothing_older_than_tls_1_2(own):
    with pytest.raises(SSL.Error):
        shake(server_tls([own]), client_of(SSL.TLS1_1_VERSION))


def test_a_disabled_suite_is_not_agreed_on(own):
    client = ClientTls().handshake("gw.example.org", verify=False)
    shake(server_tls([own], disable_ciphers=["TLS13_AES_128_GCM_SHA256"]), client)
    assert client.check().cipher == "TLS_AES_256_GCM_SHA384"


def test_a_protocol_without_a_suite_is_off(own):
    server = server_tls([own], disable_ciphers=[f"TLS13_{name}" for name in THIRTEEN])
    client = ClientTls().handshake("gw.example.org", verify=False)
    shake(server, client)
    assert client.check().version == "TLSv1.2"


THIRTEEN = ("AES_256_GCM_SHA384", "AES_128_GCM_SHA256", "CHACHA20_POLY1305_SHA256")


@pytest.mark.parametrize(
    "options, word",
    [
        ({"disable_ciphers": ["NO_SUCH"]}, "NO_SUCH"),
        ({"disable_protocols": ["SSLv3"]}, "SSLv3"),
        (
            {"disable_protocols": ["TLSv1.2"], "disable_ciphers": [f"TLS13_{name}" for name in THIRTEEN]},
            "disabled",
        ),
    ],
)
def test_unknown_names_and_an_empty_offer_are_errors(own, options, word):
    with pytest.raises(TlsConfigError, match=word):
        server_tls([own], **options)


# --- whose certificate it is ---


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Certificates by name, and a file that trusts them all."""
    made = {name: self_signed(name) for name in ("mx.test", "*.wild.test", "192.0.2.1", "xn--mnchen-3ya.test")}
    path = tmp_path_factory.mktemp("tls") / "roots.pem"
    path.write_bytes(b"".join(one.chain[0].public_bytes(Encoding.PEM) for one in made.values()))
    return made, str(path)


@pytest.mark.spec("OUT-112", "OUT-113")
@pytest.mark.parametrize(
    "certificate, host, fits",
    [
        ("mx.test", "mx.test", True),
        ("mx.test", "MX.test", True),
        ("mx.test", "mx2.test", False),
        ("mx.test", "sub.mx.test", False),
        ("*.wild.test", "a.wild.test", True),
        ("*.wild.test", "wild.test", False),
        ("*.wild.test", "a.b.wild.test", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("mx.test", "192.0.2.1", False),
        ("xn--mnchen-3ya.test", "xn--mnchen-3ya.test", True),
    ],
)
def test_a_certificate_is_for_its_names_and_no_other(roots, certificate, host, fits):
    made, trust_file = roots
    client = ClientTls().handshake(host, verify=True, trust_file=trust_file)
    shake(server_tls([made[certificate]]), client)
    if fits:
        client.check()
    else:
        with pytest.raises(NameMismatch):
            client.check()


@pytest.mark.spec("OUT-113")
def test_a_trust_file_counts_for_those_who_name_it_only(roots):
    made, trust_file = roots
    tls = ClientTls()
    shake(server_tls([made["mx.test"]]), tls.handshake("mx.test", verify=True, trust_file=trust_file))
    stranger = tls.handshake("mx.test", verify=True)
    with pytest.raises(SSL.Error):
        shake(server_tls([made["mx.test"]]), stranger)
    assert stranger.chain_problem == "the certificate is self-signed"


def test_an_expired_certificate_is_told_as_such(tmp_path):
    old = self_signed("mx.test", days=-0.5)
    path = tmp_path / "old.pem"
    path.write_bytes(old.chain[0].public_bytes(Encoding.PEM))
    client = ClientTls().handshake("mx.test", verify=True, trust_file=str(path))
    with pytest.raises(SSL.Error):
        shake(server_tls([old]), client)
    assert client.chain_problem == "the certificate has expired"


def test_without_verification_any_certificate_will_do(roots):
    made, _ = roots
    client = ClientTls().handshake("other.test", verify=False)
    shake(server_tls([made["mx.test"]]), client)
    assert client.check().version == "TLSv1.3"


@pytest.mark.parametrize("host", ["", "ä.test", "a b.test", "mx_!.test"])
def test_what_cannot_be_a_server_name_is_refused(host):
    with pytest.raises(ValueError):
        ClientTls().handshake(host, verify=True)


def test_a_trust_file_that_cannot_be_read_is_an_error(tmp_path):
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(TlsConfigError):
            ClientTls().handshake("mx.test", verify=True, trust_file=str(path))


def test_a_check_without_a_handshake_never_passes():
    with pytest.raises(NameMismatch):
        ClientTls().handshake("mx.test", verify=False).check()
