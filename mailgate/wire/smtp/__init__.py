"""SMTP and LMTP, server and client side, as state machines (RFC 5321, RFC 2033)."""
