"""The logger for events of every message gives what Twisted's gives."""

from twisted.logger import Logger, LogLevel

from mailgate.net.log import EventLog


def test_an_event_is_what_twisted_would_have_made_of_it():
    events = []
    fields = {"event": "queue.queue-message", "from": "a@b.test", "to": ["c@d.test"]}
    for made in (EventLog, Logger):
        made(namespace="mailgate.test", observer=events.append).info("{event}", **fields)
    ours, theirs = events
    for event in events:
        assert isinstance(event.pop("log_time"), float)
        assert event.pop("log_logger").namespace == "mailgate.test"
    assert ours == theirs
    assert ours["log_level"] is LogLevel.info


def test_other_levels_are_told_as_they_are():
    events = []
    EventLog(namespace="mailgate.test", observer=events.append).emit(
        LogLevel.warn, "{event}", event="delivery.in-doubt"
    )
    (event,) = events
    assert (event["log_level"], event["event"]) == (LogLevel.warn, "delivery.in-doubt")
