"""The server side of the dialogue: states, order, end of lines and data, limits."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.smtp_core import play, pump, ways, yes

from mailgate.mail import replies
from mailgate.mail.path import NULL_PATH, Path
from mailgate.mail.reply import reply
from mailgate.wire.smtp.command import (
    Auth,
    AuthResponse,
    Bdat,
    ChunkEnd,
    Data,
    DataChunk,
    DataEnd,
    Ehlo,
    Help,
    Mail,
    Noop,
    Pending,
    Quit,
    Rcpt,
    Rejected,
    Rset,
    StartTls,
)
from mailgate.wire.smtp.error import LocalError
from mailgate.wire.smtp.server import AFTER_EVENT, AFTER_REPLY, BareNewline, ServerConnection, State

BARE = Rejected(replies.BARE_NEWLINE_IN_COMMAND, close=True)
TOO_LONG = Rejected(replies.LINE_TOO_LONG)


def core(octets=b"", **options):
    connection = ServerConnection(**options)
    connection.receive(octets)
    return connection


# --- the state table: every state with every input -----------------------------------


def in_state(state):
    """A connection in this state, nothing waiting to be interpreted."""
    path = {
        State.COMMAND: [],
        State.OWED: [b"NOOP\r\n"],
        State.OWED_DATA: [b"DATA\r\n"],
        State.DATA: [b"DATA\r\n", replies.START_DATA],
        State.OWED_SASL: [b"AUTH PLAIN\r\n"],
        State.RESPONSE: [b"AUTH PLAIN\r\n", replies.challenge("")],
        State.OWED_TLS: [b"STARTTLS\r\n"],
        State.TLS: [b"STARTTLS\r\n", replies.TLS_READY],
        State.OWED_LAST: [b"QUIT\r\n"],
        State.CLOSED: [b"QUIT\r\n", replies.BYE],
        State.CHUNK: [b"BDAT 3\r\n"],
    }[state]
    connection = ServerConnection()
    for step in path:
        if isinstance(step, bytes):
            connection.receive(step)
            connection.next_event()
        else:
            connection.reply(step)
    assert connection.state is state
    return connection


OWED = [state for state in State if state.value.startswith("owed")]
READING = [state for state in State if state not in OWED]


def test_every_state_that_owes_is_in_the_table():
    assert set(AFTER_REPLY) == set(OWED)
    assert set(AFTER_EVENT.values()) <= {*OWED, State.CHUNK}


@pytest.mark.parametrize("state", OWED)
@pytest.mark.parametrize("code", [220, 221, 235, 250, 334, 354, 421, 451, 503, 550])
def test_replies_in_states_that_owe_one(state, code):
    connection = in_state(state)
    assert connection.next_event() is Pending.PAUSED
    leads_on, there, elsewhere = AFTER_REPLY[state]
    if code in (334, 354) and code != leads_on:
        with pytest.raises(LocalError):
            connection.reply(reply(code, "", ""))
        assert connection.state is state
        return
    assert connection.reply(reply(code, "", "x")) == b"%d x\r\n" % code
    assert connection.state is (there if code == leads_on else elsewhere)
    assert connection.next_event() is Pending.NEED_DATA


@pytest.mark.parametrize("state", READING)
@pytest.mark.parametrize("code", [220, 221, 235, 250, 334, 354, 421, 451, 503, 550])
def test_replies_nobody_waits_for(state, code):
    connection = in_state(state)
    if code in (220, 221) or code >= 400:
        assert connection.reply(reply(code, "", "x"))
    else:
        with pytest.raises(LocalError):
            connection.reply(reply(code, "", "x"))
    assert connection.state is state


@pytest.mark.parametrize(
    "state, octets, event, then",
    [
        (State.COMMAND, b"NOOP\r\n", Noop(), State.OWED),
        (State.COMMAND, b"XYZZY\r\n", Rejected(replies.UNKNOWN_COMMAND, unknown_verb=True), State.OWED),
        (State.COMMAND, b"DATA\r\n", Data(), State.OWED_DATA),
        (State.COMMAND, b"AUTH PLAIN\r\n", Auth("PLAIN"), State.OWED_SASL),
        (State.COMMAND, b"STARTTLS\r\n", StartTls(), State.OWED_TLS),
        (State.COMMAND, b"QUIT\r\n", Quit(), State.OWED_LAST),
        (State.COMMAND, b"BDAT 3\r\n", Bdat(3), State.CHUNK),
        (State.COMMAND, b"\n", BARE, State.OWED_LAST),
        (State.COMMAND, b"x" * 5000 + b"\r\n", TOO_LONG, State.OWED),
        (State.COMMAND, b"NOOP", Pending.NEED_DATA, State.COMMAND),
        (State.RESPONSE, b"QUIT\r\n", AuthResponse(b"QUIT"), State.OWED_SASL),
        (State.RESPONSE, b"\r\n", AuthResponse(b""), State.OWED_SASL),
        (State.RESPONSE, b"\n", BARE, State.OWED_LAST),
        (State.RESPONSE, b"x" * 5000 + b"\r\n", AuthResponse(b"", too_long=True), State.OWED_SASL),
        (State.RESPONSE, b"AGpv", Pending.NEED_DATA, State.RESPONSE),
        (State.DATA, b"QUIT\r\n", DataChunk(b"QUIT\r\n"), State.DATA),
        (State.DATA, b".\r\n", DataEnd(), State.OWED),
        (State.DATA, b".\r", Pending.NEED_DATA, State.DATA),
        (State.CHUNK, b"QU", DataChunk(b"QU"), State.CHUNK),
        (State.CHUNK, b"QUIT\r\n", DataChunk(b"QUI"), State.CHUNK),
        (State.TLS, b"NOOP\r\n", Pending.NEED_DATA, State.TLS),
        (State.CLOSED, b"NOOP\r\n", Pending.NEED_DATA, State.CLOSED),
        *((state, b"NOOP\r\n", Pending.PAUSED, state) for state in OWED),
        *((state, b"\n", Pending.PAUSED, state) for state in OWED),
    ],
)
def test_octets_in_each_state(state, octets, event, then):
    connection = in_state(state)
    connection.receive(octets)
    assert connection.next_event() == event
    assert connection.state is then


KINDS = {
    "nothing": b"",
    "line": b"NOOP\r\n",
    "half-a-line": b"NO",
    "half-a-crlf": b"NOOP\r",
    "bare-lf": b"NOOP\n",
    "bare-cr": b"NO\rOP",
    "too-long": b"x" * 5000 + b"\r\n",
    "dot": b".\r\n",
    "not-utf-8": b"NOOP \xff\r\n",
}
NEED, PAUSED = Pending.NEED_DATA, Pending.PAUSED
# What each kind of octets is where each kind of state begins.
MEANING = {
    State.COMMAND: {
        "nothing": NEED,
        "line": Noop(),
        "half-a-line": NEED,
        "half-a-crlf": NEED,
        "bare-lf": BARE,
        "bare-cr": BARE,
        "too-long": TOO_LONG,
        "dot": Rejected(replies.UNKNOWN_COMMAND, unknown_verb=True),
        "not-utf-8": Rejected(replies.SYNTAX, verb="NOOP"),
    },
    State.RESPONSE: {
        "nothing": NEED,
        "line": AuthResponse(b"NOOP"),
        "half-a-line": NEED,
        "half-a-crlf": NEED,
        "bare-lf": BARE,
        "bare-cr": BARE,
        "too-long": AuthResponse(b"", too_long=True),
        "dot": AuthResponse(b"."),
        "not-utf-8": AuthResponse(b"NOOP \xff"),
    },
    State.DATA: {
        "nothing": NEED,
        "line": DataChunk(b"NOOP\r\n"),
        "half-a-line": DataChunk(b"NO"),
        "half-a-crlf": DataChunk(b"NOOP"),
        "bare-lf": DataChunk(b"NOOP\n"),
        "bare-cr": DataChunk(b"NO\rOP"),
        "too-long": DataChunk(b"x" * 5000 + b"\r\n"),
        "dot": DataEnd(),
        "not-utf-8": DataChunk(b"NOOP \xff\r\n"),
    },
    State.CHUNK: {
        "nothing": NEED,
        "line": DataChunk(b"NOO"),
        "half-a-line": DataChunk(b"NO"),
        "half-a-crlf": DataChunk(b"NOO"),
        "bare-lf": DataChunk(b"NOO"),
        "bare-cr": DataChunk(b"NO"),
        "too-long": DataChunk(b"xxx"),
        "dot": DataChunk(b".\r\n"),
        "not-utf-8": DataChunk(b"NOO"),
    },
    State.TLS: dict.fromkeys(KINDS, NEED),
    State.CLOSED: dict.fromkeys(KINDS, NEED),
    **{state: dict.fromkeys(KINDS, PAUSED) for state in OWED},
}


def test_every_state_has_a_meaning_for_every_kind_of_octets():
    assert set(MEANING) == set(State)
    assert all(set(row) == set(KINDS) for row in MEANING.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", State)
def test_every_kind_of_octets_in_every_state(state, kind):
    connection = in_state(state)
    connection.receive(KINDS[kind])
    meant = MEANING[state][kind]
    assert connection.next_event() == meant
    if isinstance(meant, Pending | DataChunk):
        assert connection.state is state
    elif meant == BARE:
        assert connection.state is State.OWED_LAST
    else:
        assert connection.state in OWED


@pytest.mark.parametrize("state", State)
def test_discard_input_in_each_state(state):
    connection = in_state(state)
    connection.receive(b"NOOP\r\nQUIT\r\n")
    connection.discard_input()
    connection.receive(b"NOOP\r\n")
    assert connection.next_event() is Pending.NEED_DATA
    assert connection.reply(replies.SHUTTING_DOWN, trace_id="k3v7q2mzcb4d").endswith(b"[k3v7q2mzcb4d]\r\n")
    assert connection.next_event() is Pending.NEED_DATA
    assert connection.state is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_tls_started_in_each_state(state):
    connection = in_state(state)
    if state in (State.TLS, State.COMMAND):
        connection.tls_started()
        assert connection.state is State.COMMAND
    else:
        with pytest.raises(LocalError):
            connection.tls_started()
        assert connection.state is state


@pytest.mark.parametrize("state", State)
def test_transaction_ended_in_each_state(state):
    connection = in_state(state)
    connection.transaction_ended()
    assert connection.state is state


# --- order of commands and replies ------------------------------------------------------


def test_an_event_pauses_until_its_reply():
    connection = core(b"NOOP\r\nHELP\r\n")
    assert connection.next_event() == Noop()
    assert connection.next_event() is Pending.PAUSED
    assert connection.next_event() is Pending.PAUSED
    assert connection.reply(replies.NOOP_OK) == b"250 2.0.0 OK\r\n"
    assert connection.next_event() == Help()


def test_pipelined_commands_in_every_cut():
    octets = (
        b"EHLO a.test\r\nMAIL FROM:<>\r\nRCPT TO:<b@c.test>\r\nDATA\r\nA: b\r\n\r\n..c\r\n.\r\nRSET\r\nQUIT\r\nNOOP\r\n"
    )
    for pieces in ways(octets):
        assert play(ServerConnection(), pieces) == [
            Ehlo("EHLO", "a.test"),
            Mail(NULL_PATH),
            Rcpt(Path("b", "c.test")),
            Data(),
            DataChunk(b"A: b\r\n\r\n.c\r\n"),
            DataEnd(),
            Rset(),
            Quit(),
        ]


def test_data_that_is_refused_is_not_read():
    events = play(ServerConnection(), [b"DATA\r\nNOOP\r\n.\r\n"], lambda event: replies.RCPT_FIRST)
    assert events == [Data(), Noop(), Rejected(replies.UNKNOWN_COMMAND, unknown_verb=True)]


def test_two_messages_in_one_read():
    assert play(ServerConnection(), [b"DATA\r\na\r\n.\r\nDATA\r\n.\r\nNOOP\r\n"]) == [
        Data(),
        DataChunk(b"a\r\n"),
        DataEnd(),
        Data(),
        DataEnd(),
        Noop(),
    ]


def test_refusals_carry_the_trace_id_and_the_others_do_not():
    connection = core(b"EXPN\r\nHELP\r\n")
    event = connection.next_event()
    assert connection.reply(event.reply, trace_id="k3v7q2mzcb4d").endswith(b" [k3v7q2mzcb4d]\r\n")
    connection.next_event()
    assert b"k3v7q2mzcb4d" not in connection.reply(replies.HELP, trace_id="k3v7q2mzcb4d")


def test_lmtp_answers_a_message_once_for_each_recipient():
    connection = core(b"DATA\r\n.\r\n", lmtp=True)
    connection.next_event()
    connection.reply(replies.START_DATA)
    assert connection.next_event() == DataEnd()
    assert connection.reply(replies.OK, replies.QUEUE_FAILED, trace_id="x") == (
        replies.OK.wire() + replies.QUEUE_FAILED.wire("x")
    )
    assert connection.state is State.COMMAND


@pytest.mark.parametrize("command", [b"DATA\r\n.\r\n", b"BDAT 0 LAST\r\n"])
def test_smtp_answers_a_message_once(command):
    connection = core(command)
    while connection.next_event() not in (DataEnd(), ChunkEnd(last=True)):
        if connection.state is State.OWED_DATA:
            connection.reply(replies.START_DATA)
    with pytest.raises(LocalError):
        connection.reply(replies.OK, replies.OK)


def test_a_farewell_may_follow_a_reply():
    connection = core(b"AUTH PLAIN AGpvaG4Ac2VjcmV0\r\n")
    connection.next_event()
    assert connection.reply(replies.AUTH_FAILED, replies.AUTH_TOO_MANY_ERRORS).count(b"\r\n") == 2
    assert connection.state is State.COMMAND


def test_no_reply_is_a_mistake_of_ours():
    with pytest.raises(LocalError):
        core().reply()


# --- lines --------------------------------------------------------------------------------


@pytest.mark.spec("IN-111")
def test_a_command_line_too_long():
    octets = b"NOOP " + b"x" * 4993 + b"\r\nNOOP\r\n"
    assert play(ServerConnection(), [octets]) == [TOO_LONG, Noop()]
    assert play(ServerConnection(), [octets[i : i + 1] for i in range(len(octets))]) == [TOO_LONG, Noop()]
    assert play(ServerConnection(), [octets[:4999], octets[4999:]]) == [TOO_LONG, Noop()]
    assert f"{TOO_LONG.reply.code} {TOO_LONG.reply.enhanced}" == "554 5.3.4"


def test_the_reply_to_a_line_too_long_waits_for_its_end():
    connection = core(b"x" * 5000)
    assert connection.next_event() is Pending.NEED_DATA
    connection.receive(b"\r\n")
    assert connection.next_event() == TOO_LONG


@pytest.mark.spec("IN-126", "IN-127", "IN-128", "IN-129", "IN-130", "IN-131")
@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize(
    "octets, events",
    [
        (b"NOOP\nRSET\r\n", [BARE]),
        (b"NOOP\rRSET\r\n", [BARE]),
        (b"EHLO x.test\n", [BARE]),
        (b"NOOP\r\nHELP\r\nNOOP\nQUIT\r\n", [Noop(), Help(), BARE]),
        (b"x" * 5000 + b"\n", [BARE]),
        (b"\n\nQUIT\r\n", [BARE]),
        (b"NOOP\r\r\nQUIT\r\n", [BARE]),
        (b"QUIT\r\nNOOP\n", [Quit()]),
    ],
)
def test_a_bare_newline_in_a_command_ends_the_session(octets, events, mode):
    assert f"{BARE.reply.code} {BARE.reply.enhanced}" == "500 5.5.2"
    for pieces in [[octets], [octets[i : i + 1] for i in range(len(octets))]]:
        connection = ServerConnection()
        connection.bare_newline = mode
        assert play(connection, pieces) == events
        assert connection.state is State.CLOSED
        assert play(connection, [b"NOOP\r\n"]) == []


def test_a_carriage_return_at_the_end_of_a_read_is_not_bare_yet():
    connection = core(b"NOOP\r")
    assert connection.next_event() is Pending.NEED_DATA
    connection.receive(b"\n")
    assert connection.next_event() == Noop()


@pytest.mark.spec("IN-168")
def test_a_sasl_response_ended_by_lf_alone():
    connection = core(b"AUTH PLAIN\r\nAGpvaG4Ac2VjcmV0\nNOOP\r\n")
    assert pump(connection) == [Auth("PLAIN"), BARE]
    assert connection.state is State.CLOSED


def test_a_sasl_exchange():
    def answer(event):
        if event == Auth("LOGIN"):
            return replies.challenge("VXNlcm5hbWU6")
        if event == AuthResponse(b"amFuZQ=="):
            return replies.challenge("UGFzc3dvcmQ6")
        return yes(event)

    octets = b"AUTH LOGIN\r\namFuZQ==\r\ncDRzc3cwcmQ=\r\nNOOP\r\n"
    for pieces in ways(octets):
        assert play(ServerConnection(), pieces, answer) == [
            Auth("LOGIN"),
            AuthResponse(b"amFuZQ=="),
            AuthResponse(b"cDRzc3cwcmQ="),
            Noop(),
        ]


# --- STARTTLS -------------------------------------------------------------------------------


def test_octets_after_starttls_are_never_interpreted():
    connection = core(b"STARTTLS\r\nNOOP\r\nRSE")
    assert connection.next_event() == StartTls()
    connection.reply(replies.TLS_READY)
    connection.receive(b"T\r\nQUIT\r\n")
    assert held(connection) == sys.getsizeof(b"")
    assert connection.next_event() is Pending.NEED_DATA
    connection.tls_started()
    assert connection.next_event() is Pending.NEED_DATA
    connection.receive(b"EHLO a.test\r\n")
    assert connection.next_event() == Ehlo("EHLO", "a.test")


def test_starttls_refused_goes_on_in_clear():
    events = play(ServerConnection(), [b"STARTTLS\r\nNOOP\r\n"], lambda event: replies.TLS_NOT_OFFERED)
    assert events == [StartTls(), Noop()]


# --- message text ---------------------------------------------------------------------------


def message(octets, mode=BareNewline.REJECT):
    """What a message becomes, in every cut: its text, whether it is to be refused, what follows."""
    found = None
    for pieces in ways(b"DATA\r\n" + octets):
        connection = ServerConnection()
        connection.bare_newline = mode
        events = play(connection, pieces)
        assert found is None or events == found
        found = events
    assert found[0] == Data()
    text = b"".join(event.octets for event in found if isinstance(event, DataChunk))
    (end,) = (event for event in found if isinstance(event, DataEnd))
    return text, end.bare_newline, found[found.index(end) + 1 :]


@pytest.mark.parametrize(
    "octets, text, refused",
    [
        (b"hi\r\n..\r\n.a\r\n\r\n.\r\n", b"hi\r\n.\r\na\r\n\r\n", False),
        (b".\r\n", b"", False),
        (b"\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n\r\n.\r\n", b"\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n\r\n", True),
        (b"a\r\r\n.\r\n", b"a\r\r\n", True),
    ],
)
def test_messages(octets, text, refused):
    assert message(octets + b"NOOP\r\n") == (text, refused, [Noop()])


def test_a_normalised_message_is_not_to_be_refused():
    octets = b"\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n\r\n.\r\nNOOP\r\n"
    text = b"\r\n.\r\nMAIL FROM:<x@y>\r\nDATA\r\n\r\n"
    assert message(octets, BareNewline.NORMALIZE) == (text, False, [Noop()])


def test_a_bare_newline_concerns_one_message_only():
    events = play(ServerConnection(), [b"DATA\r\na\n\r\n.\r\nDATA\r\na\r\n.\r\n"])
    assert [event for event in events if isinstance(event, DataEnd)] == [DataEnd(bare_newline=True), DataEnd()]


# --- BDAT -----------------------------------------------------------------------------------


def test_chunks_are_consumed_to_the_octet():
    octets = b"BDAT 6\r\nNOOP\r\nBDAT 4 LAST\r\n.\r\nxNOOP\r\n"
    for pieces in ways(octets):
        assert play(ServerConnection(), pieces) == [
            Bdat(6),
            DataChunk(b"NOOP\r\n"),
            ChunkEnd(),
            Bdat(4, last=True),
            DataChunk(b".\r\nx"),
            ChunkEnd(last=True),
            Noop(),
        ]


def test_a_chunk_is_consumed_when_it_will_be_refused():
    octets = b"BDAT 5 LAST\r\nab\ncdNOOP\r\n"
    for pieces in ways(octets):
        events = play(ServerConnection(), pieces, lambda event: replies.RCPT_FIRST)
        assert events == [
            Bdat(5, last=True),
            DataChunk(b"ab\ncd"),
            ChunkEnd(last=True, bare_newline=True),
            Noop(),
        ]


def test_an_empty_last_chunk():
    assert play(ServerConnection(), [b"BDAT 0 LAST\r\nNOOP\r\n"]) == [Bdat(0, last=True), ChunkEnd(last=True), Noop()]


def test_a_crlf_may_be_split_over_two_chunks():
    events = play(ServerConnection(), [b"BDAT 2\r\na\rBDAT 2 LAST\r\n\nb"])
    assert events == [
        Bdat(2),
        DataChunk(b"a"),
        ChunkEnd(),
        Bdat(2, last=True),
        DataChunk(b"\r\nb"),
        ChunkEnd(last=True),
    ]


@pytest.mark.parametrize("chunk", [b"a\nb", b"ab\r", b"\rab"])
def test_bare_newlines_in_a_chunk(chunk):
    octets = b"BDAT 3 LAST\r\n" + chunk
    assert play(ServerConnection(), [octets])[-1] == ChunkEnd(last=True, bare_newline=True)
    connection = ServerConnection()
    connection.bare_newline = BareNewline.NORMALIZE
    events = play(connection, [octets])
    assert events[1:] == [
        DataChunk(chunk.replace(b"\n", b"\r\n") if b"\n" in chunk else chunk.replace(b"\r", b"\r\n")),
        ChunkEnd(last=True),
    ]


def test_bare_newlines_add_up_over_the_chunks_of_a_message():
    events = play(ServerConnection(), [b"BDAT 1\r\n\nBDAT 1 LAST\r\nxBDAT 1 LAST\r\nx"])
    assert [event for event in events if isinstance(event, ChunkEnd)] == [
        ChunkEnd(bare_newline=True),
        ChunkEnd(last=True, bare_newline=True),
        ChunkEnd(last=True),
    ]


@pytest.mark.parametrize("between", [b"RSET\r\n", b"EHLO a.test\r\n", b"MAIL FROM:<>\r\n"])
def test_a_new_transaction_forgets_the_chunks_before(between):
    events = play(ServerConnection(), [b"BDAT 2\r\n\n\r" + between + b"BDAT 1 LAST\r\nx"])
    assert events[-2:] == [DataChunk(b"x"), ChunkEnd(last=True)]


def test_chunks_can_be_forgotten_by_call():
    connection = core(b"BDAT 2\r\n\n\r")
    pump(connection)
    connection.transaction_ended()
    assert play(connection, [b"BDAT 1 LAST\r\nx"])[-2:] == [DataChunk(b"x"), ChunkEnd(last=True)]


def test_forgetting_chunks_inside_a_chunk_keeps_its_length():
    connection = core(b"BDAT 4\r\n\n\r")
    assert connection.next_event() == Bdat(4)
    assert connection.next_event() == DataChunk(b"\n")
    connection.transaction_ended()
    assert play(connection, [b"abNOOP\r\n"]) == [DataChunk(b"ab"), ChunkEnd(), Noop()]


def test_a_refused_mail_keeps_the_chunks():
    def answer(event):
        return replies.TRANSACTION_OPEN if isinstance(event, Mail) else yes(event)

    events = play(ServerConnection(), [b"BDAT 1\r\n\nMAIL FROM:<>\r\nBDAT 1 LAST\r\nx"], answer)
    assert events[-1] == ChunkEnd(last=True, bare_newline=True)


def test_a_binary_body_is_no_sequence_of_lines():
    header, body = b"A: b\r\n\r\n", b"\n\r\r\nbinary\r"
    octets = b"MAIL FROM:<> BODY=BINARYMIME\r\nBDAT %d\r\n%s\r\nBDAT %d LAST\r\n%s" % (
        len(header),
        header,
        len(body),
        body,
    )
    octets = octets.replace(header + b"\r\n", header)
    for mode in BareNewline:
        for pieces in ways(octets):
            connection = ServerConnection()
            connection.bare_newline = mode
            events = play(connection, pieces)
            text = b"".join(event.octets for event in events if isinstance(event, DataChunk))
            assert text == header + body
            assert events[-1] == ChunkEnd(last=True)


def test_a_binary_body_after_a_header_with_a_bare_newline():
    octets = b"MAIL FROM:<> BODY=BINARYMIME\r\nBDAT 9 LAST\r\nA:\nb\r\n\r\n\n"
    assert play(ServerConnection(), [octets])[-1] == ChunkEnd(last=True, bare_newline=True)


def test_the_next_message_is_not_binary():
    octets = b"MAIL FROM:<> BODY=BINARYMIME\r\nBDAT 3 LAST\r\n\r\n\nMAIL FROM:<>\r\nBDAT 3 LAST\r\n\r\n\n"
    events = [event for event in play(ServerConnection(), [octets]) if isinstance(event, ChunkEnd)]
    assert events == [ChunkEnd(last=True), ChunkEnd(last=True, bare_newline=True)]


# --- whatever comes ---------------------------------------------------------------------------

SOUP = st.lists(
    st.sampled_from(
        [
            b"EHLO a.test",
            b"MAIL FROM:<a@b.test>",
            b"MAIL FROM:<> BODY=BINARYMIME",
            b"RCPT TO:<c@d.test> NOTIFY=NEVER",
            b"DATA",
            b"BDAT 3",
            b"BDAT 5 LAST",
            b"BDAT 0 LAST",
            b"RSET",
            b"AUTH PLAIN",
            b"AUTH LOGIN eA==",
            b"STARTTLS",
            b"QUIT",
            b"NOOP",
            b".",
            b"..",
            b"\r\n",
            b"\r\n",
            b"\r\n",
            b"\r\n",
            b"\r\n.\r\n",
            b"\r",
            b"\n",
            b"\xff\x00",
            b"x" * 5000,
        ]
    ),
    max_size=25,
)


def refuse_tls(event):
    # In clear only: what comes after a handshake depends on when it is over.
    return replies.TLS_NOT_OFFERED if isinstance(event, StartTls) else yes(event)


@given(SOUP, st.sampled_from(BareNewline), st.data())
def test_one_read_equals_many(parts, mode, data):
    octets = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=8)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    whole, cut = ServerConnection(), ServerConnection()
    whole.bare_newline = cut.bare_newline = mode
    assert play(whole, [octets], refuse_tls) == play(cut, pieces, refuse_tls)
    assert whole.state is cut.state


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"DATA\r\n", b"BDAT 9\r\n", b"AUTH PLAIN\r\n"]))))
def test_nothing_raises(pieces):
    play(ServerConnection(), pieces)


def held(connection):
    """Octets that wait inside a connection."""
    return sys.getsizeof(connection._buffer.octets)


@settings(max_examples=20)
@given(
    st.sampled_from([b"", b"AUTH PLAIN\r\n", b"DATA\r\n", b"BDAT 100000000\r\n"]),
    st.sampled_from([b"x", b"\r\n.\r", b".", b"x\r\n", b"\r\n..", b"\r", b"MAIL FROM:<"]),
)
def test_memory_is_bounded(opening, filling):
    connection = core(opening)
    pump(connection)
    for _ in range(100):
        connection.receive(filling * 500)
        pump(connection)
        assert held(connection) < 4300


def test_what_waits_for_a_reply_is_what_was_given():
    connection = core(b"NOOP\r\n" * 100)
    connection.next_event()
    connection.receive(b"NOOP\r\n" * 100)
    connection.reply(replies.NOOP_OK)
    assert pump(connection) == [Noop()] * 199
    assert held(connection) < 100
