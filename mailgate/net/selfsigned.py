"""Write a self-signed certificate and its key to files, for a first try and for tests.

`python -m mailgate.net.selfsigned CERT KEY [HOSTNAME]`

Without HOSTNAME the certificate is for `localhost`. Files that are there are
left alone: a key somebody uses is never replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mailgate.net.tls import pem, self_signed


def write_self_signed(cert: Path, key: Path, hostname: str) -> None:
    """Make the two PEM files; only their owner can read the key. Raises `FileExistsError` and other `OSError`s."""
    cert_pem, key_pem = pem(self_signed(hostname))
    for path, octets, mode in ((key, key_pem, 0o600), (cert, cert_pem, 0o644)):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)


def main(arguments: Sequence[str]) -> int:
    """Run the command; answers its exit status."""
    if not 2 <= len(arguments) <= 3:
        print("usage: python -m mailgate.net.selfsigned CERT KEY [HOSTNAME]", file=sys.stderr)
        return 64
    try:
        write_self_signed(Path(arguments[0]), Path(arguments[1]), arguments[2] if arguments[2:] else "localhost")
    except OSError as error:
        print(f"no certificate written: {error}", file=sys.stderr)
        return 73
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
