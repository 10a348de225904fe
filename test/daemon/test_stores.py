"""What rules keep in mailgate's own store outlives the daemon and a reload."""

import smtplib
import sqlite3

from support.daemon import Gateway

RULE = "[session.mail]\nis-allowed = \"counter_incr('', sender, 1) <= 3\"\n"


def mail(gateway):
    """The code of the reply to MAIL."""
    with smtplib.SMTP("127.0.0.1", gateway.port("smtp"), timeout=30) as client:
        client.ehlo("mx.client.test")
        return client.mail("a@client.test")[0]


def test_a_counter_outlives_the_daemon(tmp_path):
    gateway = Gateway(tmp_path, base="B0", changes=(RULE,))
    with gateway:
        assert mail(gateway) == 250
        assert gateway.command("reload").returncode == 0
        assert mail(gateway) == 250
    with gateway:
        assert [mail(gateway) for _ in range(2)] == [250, 550]
    kept = sqlite3.connect(tmp_path / "lookup.sqlite")
    assert kept.execute("SELECT key, value FROM mailgate_keys").fetchall() == [("a@client.test", "4")]
    kept.close()


def test_a_store_nobody_asks_is_not_made(tmp_path):
    with Gateway(tmp_path, base="B0") as gateway:
        assert mail(gateway) == 250
    assert not (tmp_path / "lookup.sqlite").exists()
