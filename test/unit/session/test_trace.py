"""The fields put above a message."""

import re

import pytest

from mailgate.mail.path import NULL_PATH, Path
from mailgate.mail.session import Identity, Session, Tls
from mailgate.session import trace
from mailgate.session.trace_id import TraceIds, new_trace_id

TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")


def session(**changed):
    facts = {
        "id": "x",
        "listener": "smtp",
        "protocol": "smtp",
        "remote_ip": "192.0.2.1",
        "remote_port": 4000,
        "local_ip": "192.0.2.25",
        "local_port": 25,
        "hostname": "mx.test",
        "helo": "client.test",
        "extended": True,
    }
    return Session(**{**facts, **changed})


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"extended": False}, "SMTP"),
        ({}, "ESMTP"),
        ({"tls": TLS}, "ESMTPS"),
        ({"identity": Identity("a")}, "ESMTPA"),
        ({"tls": TLS, "identity": Identity("a")}, "ESMTPSA"),
        ({"protocol": "lmtp"}, "LMTP"),
        ({"protocol": "lmtp", "tls": TLS}, "LMTPS"),
        ({"protocol": "lmtp", "tls": TLS, "identity": Identity("a")}, "LMTPSA"),
    ],
)
def test_the_with_word_says_how_the_message_came(changed, word):
    assert trace.transmission_type(session(**changed)) == word


def test_received_names_client_host_and_queue_id():
    assert trace.received(session(), 0x1A, "DATE") == (
        b"Received: from client.test (unknown [192.0.2.1])\r\n"
        b"\tby mx.test (mailgate) with ESMTP id 000000000000001A;\r\n"
        b"\tDATE\r\n"
    )


def test_received_in_tls_names_version_and_suite():
    text = trace.received(session(tls=TLS), 1, "DATE")
    assert b"\r\n\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n\tby mx.test" in text


@pytest.mark.parametrize("helo", ["a(b)", 'a";b', "a\x7fb", "a b"])
def test_an_odd_greeting_name_cannot_pass_for_another_part_of_received(helo):
    line = trace.received(session(helo=helo), 1, "D").split(b"\r\n")[0]
    assert re.fullmatch(rb"Received: from a[?b]+ \(unknown \[192\.0\.2\.1\]\)", line)


@pytest.mark.parametrize(
    "path, field",
    [
        (NULL_PATH, b"Return-Path: <>\r\n"),
        (Path("John", "Foo.ORG"), b"Return-Path: <John@foo.org>\r\n"),
        (Path("a b", "x.test"), b'Return-Path: <"a b"@x.test>\r\n'),
    ],
)
def test_return_path_keeps_the_local_part_and_lowers_the_domain(path, field):
    assert trace.return_path(path) == field


def test_a_date_is_an_rfc_5322_date_time_and_changes_with_the_second():
    dates = trace.DateText()
    first = dates.at(1_767_225_600.9)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", first)
    assert dates.at(1_767_225_600.1) == first
    assert dates.at(1_767_225_601.0) != first


def test_message_ids_differ_and_name_the_host():
    one, two = trace.message_id("mx.test"), trace.message_id("mx.test")
    assert one != two
    assert re.fullmatch(rb"Message-ID: <[0-9a-f]{24}\.[0-9a-f]+@mx\.test>\r\n", one)


def test_trace_ids_are_twelve_characters_of_base32():
    many = TraceIds()
    ids = {new_trace_id() for _ in range(500)} | {many.new() for _ in range(500)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[a-z2-7]{12}", each) for each in ids)
