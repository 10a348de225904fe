"""`twistd mailgate`: the plugin is this one line, and imports nothing heavy."""

from twisted.application.service import ServiceMaker

mailgate = ServiceMaker("mailgate", "mailgate.service.tap", "A mail gateway that says why.", "mailgate")
