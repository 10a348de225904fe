"""A configuration of 5,000 lines: accounts, lists, routes, schedules and rules."""


def large():
    """Its parts in order."""
    yield '[server.listener.smtp]\nbind = "127.0.0.1:2525"\nprotocol = "smtp"\n[directory.d]\ntype = "memory"\n'
    for number in range(500):
        yield f'[[directory.d.principals]]\nname = "u{number}"\nemail = "u{number}@d{number}.test"\n'
    yield "[lookup]\nlarge = [\n" + "".join(f'  "x{number}.test",\n' for number in range(500)) + "]\n"
    for number in range(200):
        yield f'[queue.route.r{number}]\ntype = "relay"\naddress = "h{number}.test"\nport = 25\ntls.implicit = false\n'
    for number in range(200):
        yield f'[queue.schedule.s{number}]\nqueue-name = "remote"\nretry = ["2m", "5m"]\nnotify = "1d"\nexpire = "3d"\n'
    yield "[queue.strategy]\nroute = [\n"
    for number in range(990):
        condition = f"rcpt_domain == 'd{number}.test' && retry_num < {number}"
        yield f"""  {{ if = "{condition}", then = "'r{number % 200}'" }},\n"""
    yield "  { else = \"'mx'\" },\n]\n"
