import pytest
from support.sqlite_store import recipient

from mailgate.mail.status import ErrorKind, RecipientStatus, RemoteReply
from mailgate.queue.item import State
from mailgate.queue.rows import read_status, update_row
from mailgate.queue.schedule import final


@pytest.mark.parametrize(
    "status",
    [
        RecipientStatus("mx.test", reply=RemoteReply(250, "2.0.0", "ok")),
        RecipientStatus("mx.test", reply=RemoteReply(250, "2.0.0", "ok"), relayed=True),
        RecipientStatus(
            "mx.test", ErrorKind.UNEXPECTED_REPLY, "", "RCPT TO:<ä@x>", RemoteReply(550, "0.0.0", "no\nway")
        ),
        RecipientStatus("directory:x", ErrorKind.DEPENDENCY, "no answer"),
    ],
)
def test_a_status_is_read_back_as_it_was_written(status):
    assert read_status(update_row(1, final(recipient(), State.COMPLETED, status), 0)[1]) == status
