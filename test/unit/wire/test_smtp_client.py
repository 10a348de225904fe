"""The client core: commands and replies in every phase, parameters, content, LMTP's counting."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.mail.envelope import Body, DeliverBy, MailParameters, Notify, RcptParameters, Ret
from mailgate.mail.path import NULL_PATH, Path
from mailgate.wire.smtp import login
from mailgate.wire.smtp.answer import (
    NO_EXTENSIONS,
    REPLY_LINES,
    REPLY_OCTETS,
    Answer,
    AnswerReader,
    Extensions,
    MalformedReply,
    read_extensions,
)
from mailgate.wire.smtp.client import UNASKED, ClientConnection, EndOfContent, Phase, mail_line, xtext
from mailgate.wire.smtp.command import Auth, AuthResponse, Bdat, Data, Ehlo, Mail, Quit, Rcpt, Rset, StartTls
from mailgate.wire.smtp.error import LocalError

A, B, C = (Path(name, "x.test") for name in "abc")

COMMANDS = {
    "EHLO": Ehlo("EHLO", "gw.test"),
    "STARTTLS": StartTls(),
    "AUTH": Auth("PLAIN", b"eA=="),
    "RESPONSE": AuthResponse(b"eA=="),
    "MAIL": Mail(A),
    "RCPT": Rcpt(B),
    "DATA": Data(),
    "BDAT": Bdat(3, True),
    "RSET": Rset(),
    "QUIT": Quit(),
}


def answers(octets, *pieces):
    """Every reply in the octets."""
    reader = AnswerReader()
    found = []
    for piece in (octets, *pieces):
        reader.receive(piece)
        while (answer := reader.next()) is not None:
            found.append(answer)
    return found


def in_phase(phase, *, lmtp=False, keywords=("PIPELINING",)):
    """A connection led to a phase."""
    core = ClientConnection(lmtp=lmtp)

    def hear(octets):
        core.receive(octets)
        while core.next_event() is not None:
            pass

    if phase is Phase.GREETING:
        return core
    hear(b"220 hi\r\n")
    if phase is Phase.START:
        return core
    core.send(Ehlo("LHLO" if lmtp else "EHLO", "gw.test"))
    lines = ["mx", *keywords]
    hear("".join(f"250{'-' if at < len(lines) - 1 else ' '}{line}\r\n" for at, line in enumerate(lines)).encode())
    if phase is Phase.LOGIN:
        core.send(Auth("LOGIN"))
        hear(b"334 \r\n")
    elif phase is Phase.STARTING_TLS:
        core.send(StartTls())
        hear(b"220 go\r\n")
    elif phase is Phase.OVER:
        core.send(Quit())
        hear(b"221 bye\r\n")
    elif phase is not Phase.READY:
        core.send(Mail(A))
        core.send(Rcpt(B))
        if phase is not Phase.TRANSACTION:
            core.send(Data())
        hear(b"250 ok\r\n250 ok\r\n")
        if phase is Phase.CONTENT:
            hear(b"354 go\r\n")
    return core


# --- replies ---


@pytest.mark.parametrize(
    "octets, answer",
    [
        (b"250 ok\r\n", Answer(250, "0.0.0", ("ok",))),
        (b"250 2.1.0 ok\r\n", Answer(250, "2.1.0", ("ok",))),
        (b"250\r\n", Answer(250, "0.0.0", ("",))),
        (b"250 \n", Answer(250, "0.0.0", ("",))),
        (b"550 5.7.1\r\n", Answer(550, "5.7.1", ("",))),
        (b"550 5.7.999 x\r\n", Answer(550, "5.7.999", ("x",))),
        (b"550 5.7.1x\r\n", Answer(550, "0.0.0", ("5.7.1x",))),
        (b"550 3.7.1 x\r\n", Answer(550, "0.0.0", ("3.7.1 x",))),
        (b"250-2.0.0 a\r\n250 2.1.5 b\r\n", Answer(250, "2.1.5", ("a", "b"))),
        (b"250-a\n250-2.0.0\n250 b\n", Answer(250, "0.0.0", ("a", "", "b"))),
        (b"250-a\r\n550 5.0.0 b\r\n", Answer(550, "5.0.0", ("a", "b"))),
        (b"250 a\rb\x00c\r\n", Answer(250, "0.0.0", ("a b c",))),
        ("250 grüß dich\r\n".encode(), Answer(250, "0.0.0", ("grüß dich",))),
        (b"250 \xff\r\n", Answer(250, "0.0.0", ("\ufffd",))),
    ],
)
def test_a_reply_is_code_enhanced_code_and_text(octets, answer):
    assert answers(octets) == [answer]


@pytest.mark.parametrize(
    "octets", [b"hello\r\n", b"25\r\n", b"2500 x\r\n", b"250_x\r\n", b"\r\n", b"\xb2\xb2\xb2 x\r\n"]
)
def test_what_is_no_reply_is_an_error(octets):
    with pytest.raises(MalformedReply):
        answers(octets)


def test_replies_are_bounded_in_lines_and_octets():
    assert len(answers(b"250-x\r\n" * (REPLY_LINES - 1) + b"250 x\r\n")[0].lines) == REPLY_LINES
    with pytest.raises(MalformedReply):
        answers(b"250-x\r\n" * REPLY_LINES + b"250 x\r\n")
    with pytest.raises(MalformedReply):
        answers(b"250-" + b"x" * REPLY_OCTETS + b"\r\n")
    with pytest.raises(MalformedReply):
        answers(b"250 ", b"x" * REPLY_OCTETS)
    with pytest.raises(MalformedReply):
        answers(*[b"250-" + b"x" * 996 + b"\r\n"] * 70)


def test_many_replies_at_once_are_many_replies():
    assert [answer.code for answer in answers(b"250 a\r\n550 b\r\n354 c\r\n42", b"1 d\r\n")] == [250, 550, 354, 421]


_reply_line = st.builds(
    lambda code, more, text: b"%d%s%s\r\n" % (code, b"-" if more else b" ", text.encode()),
    st.integers(200, 599),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30),
)


@given(st.lists(_reply_line, max_size=8), st.randoms(use_true_random=False))
def test_replies_mean_the_same_however_they_are_cut(lines, choose):
    octets = b"".join(lines)
    cuts = sorted(choose.randrange(len(octets) + 1) for _ in range(5))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert answers(octets) == answers(*pieces) == answers(b"", *(octets[at : at + 1] for at in range(len(octets))))


def test_extensions_are_read_without_regard_to_case_and_order():
    answer = Answer(
        250,
        "0.0.0",
        ("mx pipelining", "size 1000", "Auth PLAIN login", "AUTH=LOGIN CRAM-MD5", "8bitmime", "X-NEW y", "", "DSN"),
    )
    assert read_extensions(answer) == Extensions(
        size=True, size_limit_octets=1000, auth=("PLAIN", "LOGIN", "CRAM-MD5"), eight_bit=True, dsn=True
    )


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE x", "SIZE " + "9" * 30, "SIZE ²"])
def test_a_size_that_says_nothing_is_no_limit(size):
    found = read_extensions(Answer(250, "0.0.0", ("mx", size)))
    assert found.size
    assert found.size_limit_octets == 0


# --- every command in every phase ---

ALLOWED = {
    Phase.GREETING: set(),
    Phase.START: {"EHLO", "QUIT"},
    Phase.READY: {"EHLO", "STARTTLS", "AUTH", "MAIL", "RSET", "QUIT"},
    Phase.LOGIN: {"RESPONSE", "QUIT"},
    Phase.STARTING_TLS: set(),
    Phase.TRANSACTION: {"RCPT", "DATA", "BDAT", "RSET", "QUIT"},
    Phase.DATA: set(),
    Phase.CONTENT: set(),
    Phase.OVER: set(),
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", COMMANDS)
def test_each_phase_takes_its_commands_and_no_other(phase, name):
    core = in_phase(phase)
    assert core.phase is phase
    if name in ALLOWED[phase]:
        assert core.send(COMMANDS[name]).endswith(b"\r\n")
        assert core.replies_due
    else:
        with pytest.raises(LocalError):
            core.send(COMMANDS[name])
        assert core.phase is phase


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.CONTENT])
def test_content_only_after_354(phase):
    core = in_phase(phase)
    with pytest.raises(LocalError):
        core.content(b"x")
    with pytest.raises(LocalError):
        core.end_of_content()


@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.GREETING, Phase.STARTING_TLS)])
def test_tls_only_when_it_is_due(phase):
    with pytest.raises(LocalError):
        in_phase(phase).tls_started()


AFTER = {
    (Phase.START, "EHLO"): {250: Phase.READY, 421: Phase.OVER, 550: Phase.START, 354: Phase.START},
    (Phase.READY, "EHLO"): {250: Phase.READY, 421: Phase.OVER, 550: Phase.READY},
    (Phase.READY, "STARTTLS"): {220: Phase.STARTING_TLS, 250: Phase.READY, 454: Phase.READY, 421: Phase.OVER},
    (Phase.READY, "AUTH"): {235: Phase.READY, 334: Phase.LOGIN, 535: Phase.READY, 421: Phase.OVER},
    (Phase.LOGIN, "RESPONSE"): {235: Phase.READY, 334: Phase.LOGIN, 501: Phase.READY, 421: Phase.OVER},
    (Phase.READY, "MAIL"): {250: Phase.TRANSACTION, 550: Phase.TRANSACTION, 421: Phase.OVER},
    (Phase.READY, "RSET"): {250: Phase.READY, 500: Phase.READY, 421: Phase.OVER},
    (Phase.TRANSACTION, "RCPT"): {250: Phase.TRANSACTION, 550: Phase.TRANSACTION, 421: Phase.OVER},
    (Phase.TRANSACTION, "DATA"): {354: Phase.CONTENT, 250: Phase.TRANSACTION, 503: Phase.TRANSACTION, 421: Phase.OVER},
    (Phase.TRANSACTION, "BDAT"): {250: Phase.READY, 503: Phase.READY, 421: Phase.OVER},
    (Phase.TRANSACTION, "RSET"): {250: Phase.READY, 421: Phase.OVER},
    (Phase.READY, "QUIT"): {221: Phase.OVER, 500: Phase.OVER},
}


@pytest.mark.parametrize(
    "phase, name, code, after",
    [(phase, name, code, after) for (phase, name), codes in AFTER.items() for code, after in codes.items()],
)
def test_each_answer_leads_where_it_should(phase, name, code, after):
    core = in_phase(phase)
    core.send(COMMANDS[name])
    core.receive(b"%d x\r\n" % code)
    event = core.next_event()
    assert event.command == COMMANDS[name]
    assert event.answer.code == code
    assert core.phase is after
    assert not core.replies_due


CODES = (200, 211, 220, 221, 235, 250, 251, 252, 334, 354, 421, 450, 451, 452, 454, 500, 503, 535, 550, 552, 554, 599)


def leads_to(phase, name, code):
    """Where any answer to any command leads: 421 and QUIT to the end, else on where it is hoped for, else nowhere."""
    if code == 421 or name == "QUIT":
        return Phase.OVER
    hoped_for = {
        "EHLO": (range(200, 300), Phase.READY),
        "STARTTLS": ((220,), Phase.STARTING_TLS),
        "AUTH": ((334,), Phase.LOGIN),
        "RESPONSE": ((334,), Phase.LOGIN),
        "DATA": ((354,), Phase.CONTENT),
    }
    codes, on = hoped_for.get(name, ((), phase))
    if code in codes:
        return on
    return {"RESPONSE": Phase.READY, "MAIL": Phase.TRANSACTION, "BDAT": Phase.READY, "RSET": Phase.READY}.get(
        name, phase
    )


@pytest.mark.parametrize(
    "phase, name", [(phase, name) for phase in Phase for name in COMMANDS if name in ALLOWED[phase]]
)
def test_every_answer_to_every_command_in_every_phase(phase, name):
    for code in CODES:
        core = in_phase(phase)
        core.send(COMMANDS[name])
        core.receive(b"%d-a\r\n%d b\r\n" % (code, code))
        assert core.next_event().command == COMMANDS[name]
        assert core.phase is leads_to(phase, name, code), code
        assert not core.replies_due
        # Nothing is owed: whatever comes now was not asked for.
        core.receive(b"250 ok\r\n")
        if core.phase is Phase.STARTING_TLS:
            assert core.next_event() is None
        else:
            assert core.next_event().place == UNASKED
            assert core.phase is Phase.OVER


@pytest.mark.parametrize("code", CODES)
def test_every_greeting(code):
    core = ClientConnection()
    core.receive(b"%d x\r\n" % code)
    assert core.next_event().command is None
    assert core.phase is (Phase.START if code == 220 else Phase.OVER)


@pytest.mark.parametrize("code, after", [(220, Phase.START), (554, Phase.OVER), (421, Phase.OVER), (250, Phase.OVER)])
def test_the_greeting(code, after):
    core = ClientConnection()
    core.receive(b"%d x\r\n" % code)
    assert core.next_event().command is None
    assert core.phase is after


@pytest.mark.parametrize("phase", [Phase.START, Phase.READY, Phase.LOGIN, Phase.TRANSACTION, Phase.CONTENT])
def test_a_reply_nobody_asked_for_ends_the_dialogue(phase):
    core = in_phase(phase)
    core.receive(b"421 4.4.2 idle too long\r\n")
    event = core.next_event()
    assert event.place == UNASKED
    assert core.phase is Phase.OVER


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STARTING_TLS])
def test_what_is_no_reply_ends_the_dialogue_in_every_phase(phase):
    core = in_phase(phase)
    core.receive(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(MalformedReply):
        core.next_event()
    assert core.phase is Phase.OVER


def test_nothing_is_read_between_the_reply_to_starttls_and_the_handshake():
    core = in_phase(Phase.STARTING_TLS)
    core.receive(b"250 injected\r\n")
    assert core.next_event() is None
    assert core.has_input
    core.tls_started()
    assert not core.has_input
    assert core.extensions == NO_EXTENSIONS
    assert core.phase is Phase.START


def test_helo_learns_no_extensions():
    core = in_phase(Phase.START)
    core.send(Ehlo("HELO", "gw.test"))
    core.receive(b"250-mx\r\n250 SIZE\r\n")
    core.next_event()
    assert core.extensions == NO_EXTENSIONS


# --- pipelining ---


def test_without_pipelining_each_command_waits_for_its_answer():
    core = in_phase(Phase.READY, keywords=())
    core.send(Mail(A))
    with pytest.raises(LocalError):
        core.send(Rcpt(B))


@pytest.mark.parametrize("first", [Ehlo("EHLO", "x"), Auth("LOGIN"), StartTls(), Quit()])
def test_some_commands_end_a_pipeline(first):
    core = in_phase(Phase.READY)
    core.send(first)
    with pytest.raises(LocalError):
        core.send(Mail(A))


def test_nothing_follows_data_before_its_answer():
    core = in_phase(Phase.TRANSACTION)
    core.send(Data())
    with pytest.raises(LocalError):
        core.send(Rset())


def test_answers_are_matched_to_commands_in_order():
    core = in_phase(Phase.READY)
    for command in (Mail(A), Rcpt(B), Rcpt(C), Data()):
        core.send(command)
    core.receive(b"250 a\r\n250 b\r\n550 c\r\n354 d\r\n")
    events = [core.next_event() for _ in range(4)]
    assert [event.line for event in events] == [
        "MAIL FROM:<a@x.test>",
        "RCPT TO:<b@x.test>",
        "RCPT TO:<c@x.test>",
        "DATA",
    ]
    assert [event.place for event in events] == [-1, 0, 1, -1]
    core.content(b"x\r\n")
    core.end_of_content()
    core.send(Mail(C))
    core.receive(b"250 taken\r\n250 next\r\n")
    assert core.next_event().command is EndOfContent.DATA
    assert core.next_event().command == Mail(C)


@pytest.mark.parametrize("by_chunk", [False, True])
def test_lmtp_owes_a_reply_for_each_accepted_recipient(by_chunk):
    core = in_phase(Phase.READY, lmtp=True)
    for command in (Mail(A), Rcpt(A), Rcpt(B), Rcpt(C)):
        core.send(command)
    core.receive(b"250 x\r\n250 a\r\n550 b\r\n250 c\r\n")
    assert [core.next_event().answer.code for _ in range(4)] == [250, 250, 550, 250]
    if by_chunk:
        core.send(Bdat(10, True))
    else:
        core.send(Data())
        core.receive(b"354 x\r\n")
        core.next_event()
        core.end_of_content()
    core.receive(b"250 a\r\n452 c\r\n")
    assert [(event.place, event.answer.text) for event in (core.next_event(), core.next_event())] == [
        (0, "a"),
        (2, "c"),
    ]
    assert not core.replies_due


def test_lmtp_with_nobody_accepted_owes_one_reply():
    core = in_phase(Phase.READY, lmtp=True)
    for command in (Mail(A), Rcpt(A), Bdat(2, True)):
        core.send(command)
    core.receive(b"250 x\r\n550 a\r\n503 none\r\n")
    assert [core.next_event().place for _ in range(3)] == [-1, 0, -1]
    assert not core.replies_due


# --- what is written ---

EVERYTHING = Extensions(
    size=True,
    chunking=True,
    binarymime=True,
    eight_bit=True,
    smtputf8=True,
    dsn=True,
    requiretls=True,
    mt_priority=True,
    deliver_by=True,
)
FULL = MailParameters(
    size_octets=7,
    body=Body.EIGHT_BIT,
    smtputf8=True,
    requiretls=True,
    ret=Ret.FULL,
    envid="QQ 314+159=",
    deliver_by=DeliverBy(-5, "N", True),
    priority=9,
)


def test_mail_carries_what_is_asked_for_and_offered():
    line = (
        "MAIL FROM:<a@x.test> SIZE=7 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=FULL ENVID=QQ+20314+2B159+3D"
        " MT-PRIORITY=9 BY=-5;NT"
    )
    assert mail_line(Mail(A, FULL), EVERYTHING) == line
    assert mail_line(Mail(A, FULL), NO_EXTENSIONS) == "MAIL FROM:<a@x.test>"
    assert mail_line(Mail(NULL_PATH), EVERYTHING) == "MAIL FROM:<>"


@pytest.mark.parametrize(
    "body, offered, words",
    [
        (Body.BINARY, Extensions(binarymime=True), " BODY=BINARYMIME"),
        (Body.BINARY, Extensions(eight_bit=True), ""),
        (Body.EIGHT_BIT, Extensions(binarymime=True), ""),
        (Body.SEVEN_BIT, EVERYTHING, ""),
    ],
)
def test_body(body, offered, words):
    assert mail_line(Mail(A, MailParameters(body=body)), offered) == "MAIL FROM:<a@x.test>" + words


@pytest.mark.parametrize(
    "parameters, words",
    [
        (RcptParameters(notify=Notify.NEVER, orcpt="a@b"), b" NOTIFY=NEVER ORCPT=rfc822;a@b"),
        (RcptParameters(notify=Notify.FAILURE | Notify.SUCCESS), b" NOTIFY=SUCCESS,FAILURE"),
        (RcptParameters(notify=Notify.NONE), b""),
        (RcptParameters(), b""),
        (RcptParameters(orcpt="jö+x@b"), b" ORCPT=utf-8;j\\x{F6}\\x{2B}x@b"),
    ],
)
def test_rcpt_carries_dsn_parameters_where_they_are_offered(parameters, words):
    core = in_phase(Phase.READY, keywords=("PIPELINING", "DSN"))
    core.send(Mail(A))
    assert core.send(Rcpt(B, parameters)) == b"RCPT TO:<b@x.test>" + words + b"\r\n"
    plain = in_phase(Phase.READY)
    plain.send(Mail(A))
    assert plain.send(Rcpt(B, parameters)) == b"RCPT TO:<b@x.test>\r\n"


@pytest.mark.parametrize(
    "text, encoded", [("a", "a"), ("a b", "a+20b"), ("+=", "+2B+3D"), ("\n", "+0A"), ("ä", "+C3+A4")]
)
def test_xtext(text, encoded):
    assert xtext(text) == encoded


@pytest.mark.parametrize("bad", ["a\r\nRCPT TO:<evil@x.test>", "a\nb", "a\0"])
def test_no_value_can_end_a_command_early(bad):
    core = in_phase(Phase.READY)
    with pytest.raises(LocalError):
        core.send(Mail(Path(bad, "x.test")))
    with pytest.raises(LocalError):
        in_phase(Phase.START).send(Ehlo("EHLO", bad))


def test_secrets_are_not_in_what_is_shown():
    core = in_phase(Phase.READY)
    assert core.send(Auth("PLAIN", b"c2VjcmV0")) == b"AUTH PLAIN c2VjcmV0\r\n"
    core.receive(b"334 \r\n")
    assert core.next_event().line == "AUTH PLAIN"
    assert core.send(AuthResponse(b"c2VjcmV0")) == b"c2VjcmV0\r\n"
    core.receive(b"535 no\r\n")
    assert core.next_event().line == "AUTH"
    assert in_phase(Phase.READY).send(Auth("EXTERNAL", b"")) == b"AUTH EXTERNAL =\r\n"


# --- content ---


def sent(pieces):
    core = in_phase(Phase.CONTENT)
    return b"".join([*map(core.content, pieces), core.end_of_content()])


_tricky = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b"\r\n.\r\n"]), max_size=30).map(
    b"".join
)


@pytest.mark.spec("OUT-093", "OUT-095")
@given(_tricky, st.lists(st.integers(0, 60), max_size=4))
def test_content_is_stuffed_the_same_however_it_is_cut(octets, cuts):
    cuts = sorted(min(cut, len(octets)) for cut in cuts)
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    whole = sent([octets])
    assert sent(pieces) == whole
    assert whole.endswith(b".\r\n")
    stuffed = whole[:-3]
    assert stuffed == b"" or stuffed.endswith(b"\r\n")
    # Exactly one final line end is added where there is none, and none elsewhere.
    expected = octets if not octets or octets.endswith(b"\r\n") else octets + b"\r\n"
    unstuffed, before = bytearray(), b"\n"
    for at in range(len(stuffed)):
        octet = stuffed[at : at + 1]
        if octet == b"." and before in (b"\r", b"\n"):
            before = b""
            continue
        unstuffed += octet
        before = octet
    assert bytes(unstuffed) == expected


@pytest.mark.spec("OUT-094")
@given(_tricky)
def test_no_line_of_a_single_dot_in_anybodys_reading_before_the_end(octets):
    stuffed = sent([octets])[:-3]
    for old, new in ((b"\r\n", b"\n"), (b"\r", b"\n")):
        stuffed = stuffed.replace(old, new)
    assert b"." not in stuffed.split(b"\n")


# --- logins ---


def test_a_login_answers_prompts_in_any_case():
    exchange = login.begin("LOGIN", "jö", "pw")
    assert exchange.initial is None
    assert exchange.respond(b"USER NAME\0") == "jö".encode()
    assert exchange.respond(b"password:") == b"pw"
    with pytest.raises(login.BadChallenge):
        exchange.respond(b"shoe size")


def test_cram_md5_is_that_of_its_rfc():
    exchange = login.begin("CRAM-MD5", "tim", "tanstaaftanstaaf")
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    # RFC 2195 2 gives this very exchange.
    assert exchange.respond(challenge) == b"tim b913a602c7eda7a495b4e6e7334d3890"
    with pytest.raises(login.BadChallenge):
        exchange.respond(challenge)


def test_plain_repeats_itself_once_for_servers_that_ignore_the_initial_response():
    exchange = login.begin("PLAIN", "tim", "pw")
    assert exchange.initial == b"\0tim\0pw"
    assert exchange.respond(b"") == b"\0tim\0pw"
    with pytest.raises(login.BadChallenge):
        exchange.respond(b"")


def test_a_challenge_must_be_base64():
    assert login.decode(login.encode(b"\0x").decode()) == b"\0x"
    for text in ("%%", "a", "ä"):
        with pytest.raises(login.BadChallenge):
            login.decode(text)


def test_a_long_random_dialogue_never_raises():
    choose = random.Random(7)
    for _ in range(200):
        core = in_phase(choose.choice([Phase.GREETING, Phase.START, Phase.READY, Phase.TRANSACTION]))
        octets = bytes(choose.choice(b"0245-. \r\nax") for _ in range(60))
        core.receive(octets)
        try:
            while core.next_event() is not None:
                pass
        except MalformedReply:
            pass
