"""Every fixed reply mailgate sends as a server, named once.

Texts are generic on purpose: they say nothing about rules, hosts, paths or
dependencies; the trace id at their end leads an operator to those.
"""

from __future__ import annotations

from mailgate.mail.reply import Reply, reply

# --- any time ---------------------------------------------------------------
OK = reply(250, "2.0.0", "OK")
NOOP_OK = reply(250, "2.0.0", "OK")
HELP = reply(250, "2.0.0", "EHLO HELO LHLO STARTTLS AUTH MAIL RCPT DATA BDAT RSET VRFY EXPN NOOP HELP QUIT")
RSET_OK = reply(250, "2.0.0", "Transaction dropped")
BYE = reply(221, "2.0.0", "Bye")
UNKNOWN_COMMAND = reply(500, "5.5.1", "Command not recognised")
NOT_OFFERED = reply(502, "5.5.1", "Command not offered here")
SYNTAX = reply(501, "5.5.2", "Syntax error in the command's arguments")
BAD_REVERSE_PATH = reply(501, "5.1.8", "The sender address is not valid")
BAD_FORWARD_PATH = reply(501, "5.1.3", "The recipient address is not valid")
BAD_PARAMETER_VALUE = reply(501, "5.5.4", "A parameter has a value that is not valid")
UNKNOWN_PARAMETER = reply(504, "5.5.4", "A parameter is not recognised or takes no value")
LINE_TOO_LONG = reply(554, "5.3.4", "Command line too long")
BARE_NEWLINE_IN_COMMAND = reply(500, "5.5.2", "Lines end with CR LF only")
TRY_LATER = reply(451, "4.3.0", "Cannot do this now, try again later")
UNKNOWN_ANSWER = reply(451, "4.4.3", "Cannot check this now, try again later")
FILTER_UNKNOWN = reply(451, "4.3.5", "Cannot check this now, try again later")

# --- session ----------------------------------------------------------------
SHUTTING_DOWN = reply(421, "4.3.0", "Shutting down, try again later")
SESSION_TOO_LONG = reply(421, "4.3.2", "The session has lasted too long")
TRANSFER_LIMIT = reply(452, "4.7.28", "The session has sent too much")
CONNECT_REFUSED = reply(554, "5.7.1", "Not served here")
NOT_ALLOWED = reply(550, "5.7.1", "Not allowed")
CANNOT_SERVE = reply(421, "4.3.0", "Cannot serve you now, try again later")
CONNECT_UNKNOWN = reply(421, "4.4.3", "Cannot serve you now, try again later")


def inactive(hostname: str) -> Reply:
    """The farewell to a client that has said nothing for `session.timeout`."""
    return reply(221, "2.0.0", f"{hostname} closes the connection, the client was inactive")


# --- greeting, EHLO, STARTTLS -----------------------------------------------
NOT_SMTP_HERE = reply(500, "5.5.1", "This is LMTP: say LHLO")
NOT_LMTP_HERE = reply(502, "5.5.1", "This is SMTP: say EHLO")
NAME_NOT_QUALIFIED = reply(550, "5.5.0", "The name in EHLO is not fully qualified")
TLS_READY = reply(220, "2.0.0", "Ready to start TLS")
TLS_ALREADY = reply(504, "5.7.4", "TLS is already in use")
TLS_NOT_OFFERED = reply(502, "5.7.0", "TLS is not offered here")


def greeting(text: str) -> Reply:
    """The 220 line a connection starts with."""
    return reply(220, "", text)


# --- AUTH (RFC 4954) ----------------------------------------------------------
AUTH_OK = reply(235, "2.7.0", "Authentication succeeded")
AUTH_NOT_AVAILABLE = reply(503, "5.5.1", "Authentication is not available")
AUTH_ALREADY = reply(503, "5.5.1", "Already authenticated")
AUTH_IN_TRANSACTION = reply(503, "5.5.1", "No authentication inside a transaction")
AUTH_UNKNOWN_MECHANISM = reply(554, "5.7.8", "Authentication mechanism not offered")
AUTH_CANCELLED = reply(501, "5.7.0", "Authentication cancelled")
AUTH_MALFORMED = reply(500, "5.5.6", "Authentication exchange not understood")
AUTH_FAILED = reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_CODE_MISSING = reply(535, "5.7.8", "A one-time code is needed: send the password followed by $ and the code")
AUTH_MAY_NOT_SEND = reply(550, "5.7.1", "This account may not send mail")
AUTH_UNKNOWN = reply(454, "4.7.0", "Cannot authenticate now, try again later")
AUTH_TOO_MANY_ERRORS = reply(455, "4.3.0", "Too many authentication errors")


def challenge(octets_base64: str) -> Reply:
    """A SASL challenge, already in base64."""
    return reply(334, "", octets_base64)


# --- MAIL -------------------------------------------------------------------
SENDER_OK = reply(250, "2.1.0", "Sender OK")
SAY_EHLO_FIRST = reply(503, "5.5.1", "Say EHLO first")
TRANSACTION_OPEN = reply(503, "5.5.1", "A transaction is already open")
AUTH_REQUIRED = reply(503, "5.5.1", "Authenticate first")
SENDER_NOT_ALLOWED = reply(550, "5.7.1", "Sender not allowed")
SENDER_NOT_YOURS = reply(501, "5.5.4", "You may not send from this address")
PARAMETER_NOT_OFFERED = reply(501, "5.5.4", "A parameter belongs to an extension that is not offered")
PARAMETER_OUT_OF_RANGE = reply(501, "5.5.4", "A parameter is outside the offered range")
MESSAGE_TOO_BIG = reply(552, "5.3.4", "Message too big")

# --- RCPT -------------------------------------------------------------------
RECIPIENT_OK = reply(250, "2.1.5", "Recipient OK")
MAIL_FIRST = reply(503, "5.5.1", "MAIL first")
TOO_MANY_RECIPIENTS = reply(455, "4.5.3", "Too many recipients")
NO_SUCH_MAILBOX = reply(550, "5.1.2", "No such mailbox here")
RELAY_DENIED = reply(550, "5.1.2", "Relaying is not allowed")
TOO_MANY_ERRORS = reply(451, "4.3.0", "Too many errors")

# --- VRFY, EXPN ---------------------------------------------------------------
VRFY_DISABLED = reply(252, "2.5.1", "Not verified; mail will be tried")
VRFY_UNKNOWN = reply(252, "2.4.3", "Cannot verify now; mail will be tried")
VRFY_NOTHING = reply(550, "5.1.2", "Nothing found")

# --- DATA, BDAT -----------------------------------------------------------------
START_DATA = reply(354, "", "Send the message, end with CR LF . CR LF")
RCPT_FIRST = reply(503, "5.5.1", "RCPT first")
BDAT_THEN_DATA = reply(503, "5.5.1", "DATA cannot follow BDAT in one transaction")
BINARY_NEEDS_BDAT = reply(503, "5.5.1", "BODY=BINARYMIME needs BDAT")
BDAT_FAILED_BEFORE = reply(503, "5.5.1", "An earlier chunk was refused")
CHUNK_OK = reply(250, "2.6.0", "Chunk received")
TOO_MANY_MESSAGES = reply(452, "4.4.5", "Too many messages in this session")
BARE_NEWLINE_IN_MESSAGE = reply(550, "5.6.0", "Bare CR or LF is not allowed in a message (RFC 5321 2.3.8)")
NO_HEADER = reply(550, "5.7.7", "The message has no header field")
MAIL_LOOP = reply(450, "4.4.6", "Too many Received fields: the message loops")
QUEUE_FAILED = reply(451, "4.3.5", "Unable to accept message at this time.")
QUEUE_FULL = reply(452, "4.3.1", "Mail system full, try again later.")


def queued(queue_id: str) -> Reply:
    """The final 250: sent only after the message is on disk for good."""
    return Reply(250, "2.0.0", (f"Message queued with id {queue_id}.",))
