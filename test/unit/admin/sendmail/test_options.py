import pytest

from mailgate.admin.sendmail.options import Mode, Usage, read


def test_what_a_program_usually_says():
    options = read("sendmail", ["-oi", "-oem", "-FCron Daemon", "-f", "root@x.test", "-t", "--", "-odd@x.test"])
    assert options.mode is Mode.DELIVER
    assert options.from_header
    assert not options.dot_ends
    assert (options.full_name, options.sender, options.recipients) == ("Cron Daemon", "root@x.test", ["-odd@x.test"])


@pytest.mark.parametrize("arguments", [["-i"], ["-oi"], ["-ti"], ["-it"], ["-o", "i"]])
def test_the_ways_to_say_that_a_dot_is_text(arguments):
    assert not read("sendmail", arguments).dot_ends


def test_letters_may_stand_together_and_values_apart():
    options = read("sendmail", ["-tivf", "a@b.test", "c@d.test"])
    assert (options.from_header, options.dot_ends, options.sender) == (True, False, "a@b.test")
    assert options.recipients == ["c@d.test"]


def test_the_parameters_of_delivery_status():
    options = read("sendmail", ["-N", "success,delay", "-R", "hdrs", "-V", "id-1", "x@y.test"])
    assert (options.notify, options.ret, options.envid) == ("SUCCESS,DELAY", "HDRS", "id-1")


@pytest.mark.parametrize("value", ["", "<>"])
def test_the_null_sender_is_a_sender(value):
    assert read("sendmail", ["-f", value, "x"]).sender == value


@pytest.mark.parametrize(
    "argument",
    ["-bm", "-m", "-v", "-B8BITMIME", "-OMaxHopCount=5", "-odi", "-oeq", "-G", "-n", "-Ac", "-h3", "-U", "-d"],
)
def test_what_means_nothing_here_is_accepted(argument):
    options = read("sendmail", [argument, "x"])
    assert options.mode is Mode.DELIVER
    assert options.recipients == ["x"]
    assert options.dot_ends


@pytest.mark.parametrize(
    ("program", "arguments", "mode"),
    [
        ("sendmail", ["-bp"], Mode.LIST),
        ("mailq", [], Mode.LIST),
        ("sendmail", ["-bs"], Mode.SMTP),
        ("sendmail", ["-bi"], Mode.ALIASES),
        ("sendmail", ["-I"], Mode.ALIASES),
        ("newaliases", [], Mode.ALIASES),
        ("sendmail", ["-b", "m"], Mode.DELIVER),
    ],
)
def test_the_modes(program, arguments, mode):
    assert read(program, arguments).mode is mode


@pytest.mark.parametrize(
    ("argument", "selected"),
    [
        ("-q", ["--all"]),
        ("-q15m", ["--all"]),
        ("-qI1a2b", ["--", "1a2b"]),
        ("-qRjane", ["--rcpt", "jane"]),
        ("-qSjoe", ["--sender", "joe"]),
    ],
)
def test_the_queue_is_tried(argument, selected):
    options = read("sendmail", [argument])
    assert options.mode is Mode.RETRY
    assert options.retry == selected


@pytest.mark.parametrize(
    "arguments",
    [["-z"], ["-f"], ["-bd"], ["-bD"], ["-bt"], ["-bq"], ["-N", "always"], ["-R", "all"], ["-V", "a b"], ["-V", ""]],
)
def test_a_command_line_that_means_nothing_is_refused(arguments):
    with pytest.raises(Usage):
        read("sendmail", arguments)
