"""Start `twistd mailgate` for a measurement, in the foreground.

mailgate_server.py --port 2525 --dir DIR                 mail is accepted and waits in the queue
mailgate_server.py --port 2525 --dir DIR --sink 2526     mail is relayed to 127.0.0.1:2526
mailgate_server.py --port 2525 --dir DIR --no-record     no decision is recorded

The policy is the one the package ships (etc/mailgate.toml): only listeners,
paths, where mail goes, and the limits a load generator runs into are replaced.
So that nothing is delivered while accepting is measured, the next hop is a
port that takes connections and never greets, and the queue has one slot: the
one attempt waits, the queue behind it is left alone.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))

from support.baseline import merged, toml_text  # noqa: E402

DOMAIN = "relay.test"


def config(arguments: argparse.Namespace, hop: int) -> str:
    """The configuration's text; `hop` is the port mail goes to."""
    folder = Path(arguments.dir).resolve()
    table = tomllib.loads((ROOT / "etc" / "mailgate.toml").read_text(encoding="utf-8"))
    # Tables of ids are replaced, not merged: nothing of the package's example may stay behind.
    for path in (("server", "listener"), ("certificate",), ("directory",), ("store",), ("queue", "route")):
        inner = table
        for name in path[:-1]:
            inner = inner.get(name, {})
        inner.pop(path[-1], None)
    ours = f"""
    [server]
    hostname = "bench.test"
    max-connections = 20000

    [server.listener.smtp]
    bind = "127.0.0.1:{arguments.port}"
    protocol = "smtp"

    [storage]
    data = "queue"

    [store.queue]
    type = "sqlite"
    path = "{folder}/queue.sqlite"

    [decisions]
    path = "{folder}/decisions"

    [management]
    socket = "{folder}/control.sock"

    # What a load generator does and a mail server does not.
    [session]
    transfer-limit = 100000000000
    duration = "1d"

    [session.data.limits]
    messages = 1000000

    [session.ehlo]
    reject-non-fqdn = false

    [session.rcpt]
    directory = false
    relay = "rcpt_domain = '{DOMAIN}'"

    # Enforced as shipped, with room for what a measurement leaves in the queue.
    [[queue.quota]]
    messages = 1000000000
    size = 1000000000000000
    enable = true

    [queue.strategy]
    schedule = "'remote'"
    route = "'hop'"

    [queue.route.hop]
    type = "relay"
    address = "127.0.0.1"
    port = {hop}
    tls.implicit = false
    """
    table = merged(table, tomllib.loads(ours))
    table.get("storage", {}).pop("directory", None)
    if arguments.no_record:
        table = merged(table, {"decisions": {"enable": False}})
    if not arguments.sink:
        table = merged(table, tomllib.loads("[queue.virtual.remote]\nthreads-per-node = 1\n"))
    if arguments.cert:
        tls = {"cert": f"%{{file:{arguments.cert}}}%", "private-key": f"%{{file:{arguments.key}}}%", "default": True}
        table = merged(table, {"certificate": {"bench": tls}})
    else:
        table = merged(table, tomllib.loads("[server.listener.smtp]\ntls.enable = false\n"))
    return toml_text(table)


def main() -> None:
    """Write the configuration and become the daemon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--sink", type=int)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    os.makedirs(arguments.dir, exist_ok=True)
    hop = arguments.sink
    if not hop:
        # Nobody accepts from it: the kernel answers, and no greeting ever comes. It stays open through exec.
        silent = socket.create_server(("127.0.0.1", 0), backlog=100)
        silent.set_inheritable(True)
        hop = silent.getsockname()[1]
    path = Path(arguments.dir) / "mailgate.toml"
    path.write_text(config(arguments, hop), encoding="utf-8")
    os.chdir(arguments.dir)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["MAILGATE_HOME"] = str(Path(arguments.dir).resolve())
    twistd = str(Path(sys.executable).with_name("twistd"))
    os.execv(twistd, [twistd, "-n", "--pidfile=", "mailgate", "--config", str(path.resolve())])


if __name__ == "__main__":
    main()
