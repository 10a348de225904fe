"""What is in the queue outlives the daemon, however it ends, and a full disk."""

import smtplib
import threading
import time

import pytest
from support.daemon import Gateway
from support.relaying import CHANGES, relay, send
from support.sink import DROP, HELD, SILENCE, NextHop

GRACE = '[server]\nshutdown-grace = "1500ms"\n'


@pytest.mark.spec("OUT-211")
def test_without_room_for_new_mail_what_is_queued_goes_on(tmp_path, authority):
    with NextHop(replies={"CONNECT": [DROP]}) as hop:
        gateway = Gateway(tmp_path, authority, base="B1", changes=(CHANGES, relay(hop)))
        with gateway:
            send(gateway, "x@relay.test")
        assert len(gateway.queue()) == 1
        text = gateway.config.read_text()
        gateway.config.write_text(text.replace('poll = "500ms"', 'poll = "500ms"\nmin-free = 1000000000000000'))
        hop.script("CONNECT", "220 hop.test ready")
        with gateway:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                send(gateway, "y@relay.test")
            assert refused.value.smtp_code == 452
            assert refused.value.smtp_error.startswith(b"4.3.1")
            assert hop.wait_messages(1)[0].recipients == ["x@relay.test"]
            gateway.wait_queue_empty()


@pytest.mark.spec("OUT-212")
def test_a_stop_lets_attempts_finish_and_gives_the_others_back(tmp_path, authority):
    with NextHop(replies={"DOT": [HELD]}) as slow, NextHop(replies={"CONNECT": [SILENCE]}) as silent:
        routes = (
            relay(slow).replace("route.hop", "route.slow")
            + relay(silent)
            + "[queue.strategy]\nroute = [ { if = \"rcpt_domain = 'slow.test'\", then = \"'slow'\" }, "
            "{ else = \"'hop'\" } ]\n"
        )
        gateway = Gateway(tmp_path, authority, base="B1", changes=(CHANGES, routes, '[queue]\nlease = "10m"\n', GRACE))
        gateway.start()
        send(gateway, "x@slow.test")
        send(gateway, "y@silent.test")
        assert slow.held.acquire(timeout=10)
        silent.wait_dialogues(1)
        # The first attempt ends within the grace time, the second does not.
        began = time.monotonic()
        release = threading.Timer(0.5, slow.release)
        release.start()
        assert gateway.stop() == 0
        release.join()
        assert 0.5 < time.monotonic() - began < 5
        assert [one.recipients for one in slow.messages] == [["x@slow.test"]]
        (row,) = gateway.queue()
        assert (row.address, row.state) == ("y@silent.test", "scheduled")
        # No lease of ten minutes stands in the way of the next daemon.
        silent.script("CONNECT", "220 hop.test ready")
        began = time.monotonic()
        with gateway:
            silent.wait_messages(1, 10)
            assert time.monotonic() - began < 10
            gateway.wait_queue_empty()
        assert len(slow.messages) == 1


@pytest.mark.spec("OUT-207")
def test_what_one_group_came_to_survives_a_crash_in_the_next(tmp_path, authority):
    with NextHop(replies={"DOT": ["250 2.0.0 taken", HELD]}) as hop:
        single = '[queue.connection.default]\nmax-recipients = 2\n[queue]\nlease = "1s"\n'
        gateway = Gateway(tmp_path, authority, base="B1", changes=(CHANGES, relay(hop), single))
        gateway.start()
        send(gateway, "a@one.test", "b@one.test", "c@one.test", "d@two.test")
        assert hop.held.acquire(timeout=10)
        gateway.kill()
        hop.script("DOT", "250 2.0.0 taken")
        hop.release()
        with gateway:
            gateway.wait_log("delivery.in-doubt")
            gateway.hasten()
            gateway.wait_queue_empty()
        sent = sorted(address for one in hop.messages for address in one.recipients)
        # The hop had taken `c` when the daemon was killed, who could not know: only that one may come twice.
        assert [address for address in sent if address != "c@one.test"] == ["a@one.test", "b@one.test", "d@two.test"]
        assert "c@one.test" in sent
        assert len({one.octets for one in hop.messages}) == 1
