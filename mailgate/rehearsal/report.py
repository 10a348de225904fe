"""What became of policy tests, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mailgate.decisions.entry import Step
from mailgate.decisions.explain import printable, step_lines
from mailgate.rehearsal.case import Case, Outcome
from mailgate.rehearsal.run import Rehearsed, Said

STAGES = ("connect", "ehlo", "starttls", "auth", "mail", "rcpt", "data")


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that came otherwise than expected; `said` is the answer it is about, if it is about one."""

    what: str
    expected: str
    got: str
    said: Said | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One test and what became of it."""

    case: Case
    rehearsed: Rehearsed
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Everything is as expected, and every question had its answer."""
        return not self.differences and not self.rehearsed.missing


def judged(case: Case, rehearsed: Rehearsed) -> Result:
    """Hold what came against what the test expects."""
    return Result(case, rehearsed, tuple(_differences(case, rehearsed)))


def _differences(case: Case, rehearsed: Rehearsed) -> Iterator[Difference]:
    expect = case.expect
    for stage, wanted in (
        ("connect", expect.connect),
        ("ehlo", expect.ehlo),
        ("starttls", expect.starttls),
        ("auth", expect.auth),
        ("mail", expect.mail),
        ("data", expect.data),
    ):
        if wanted is not None:
            said = rehearsed.stages.get(stage, ())
            yield from _compared(stage, wanted, said[-1] if said else None, rehearsed)
    if expect.rcpt is not None:
        yield from _recipients(case, expect.rcpt, rehearsed)
    message = rehearsed.queued
    last = [said for stage in STAGES for said in rehearsed.stages.get(stage, ())][-1:]
    if expect.queued is not None and expect.queued is not (message is not None):
        yield Difference("queued", _word(expect.queued), _word(message is not None), last[0] if last else None)
    if expect.sender is not None:
        yield from _facts("sender", expect.sender, None if message is None else message.return_path)
    if expect.recipients is not None:
        found = None if message is None else sorted(recipient.address for recipient in message.recipients)
        yield from _facts(
            "recipients", ", ".join(sorted(expect.recipients)), None if found is None else ", ".join(found)
        )
    if expect.header is not None:
        yield from _facts("header", ", ".join(expect.header), None if message is None else ", ".join(rehearsed.header))


def _recipients(case: Case, wanted: Sequence[Outcome], rehearsed: Rehearsed) -> Iterator[Difference]:
    given = case.given.rcpt or ()
    said = rehearsed.stages.get("rcpt", ())
    if len(wanted) == 1:
        wanted = [wanted[0]] * max(len(given), 1)
    if len(wanted) != len(given) and given:
        yield Difference("rcpt", f"{len(wanted)} answers", f"{len(given)} recipients are given")
        return
    for number, each in enumerate(wanted):
        what = f"rcpt {given[number].path}" if number < len(given) else "rcpt"
        yield from _compared(what, each, said[number] if number < len(said) else None, rehearsed)


def _compared(what: str, wanted: Outcome, said: Said | None, rehearsed: Rehearsed) -> Iterator[Difference]:
    if said is None:
        if wanted.verdict != "not reached" or wanted.code is not None:
            yield Difference(
                what, _expected(wanted), f"not reached: {rehearsed.ended or 'it was not asked for'}", _last(rehearsed)
            )
        return
    decisive = said.decisive
    fits = (
        wanted.code in (None, said.code)
        and wanted.enhanced in (None, said.enhanced)
        and wanted.verdict in (None, said.verdict)
        and (wanted.rule is None or (decisive is not None and decisive.rule == wanted.rule))
    )
    if not fits:
        yield Difference(what, _expected(wanted), _got(said), said)


def _last(rehearsed: Rehearsed) -> Said | None:
    said = [each for stage in STAGES for each in rehearsed.stages.get(stage, ())]
    return said[-1] if said else None


def _facts(what: str, expected: str, got: str | None) -> Iterator[Difference]:
    if got is None or expected != got:
        yield Difference(what, expected or "none", "nothing was queued" if got is None else got or "none")


def _word(queued: bool) -> str:
    return "yes" if queued else "no"


def _expected(wanted: Outcome) -> str:
    reply = " ".join(str(part) for part in (wanted.code, wanted.enhanced) if part is not None)
    parts = [part for part in (reply, wanted.verdict) if part]
    return ", ".join(parts + ([f"decided by {wanted.rule}"] if wanted.rule is not None else []))


def _got(said: Said) -> str:
    decisive = said.decisive
    reply = f"{said.code} {said.enhanced}".rstrip()
    by = f", decided by {decisive.rule}" if decisive is not None else ""
    return f"{reply}, {said.verdict}{by}"


# --- for people -------------------------------------------------------------------


def told(results: Sequence[Result]) -> str:
    """The tests in lines: each with its outcome, for a failed one what came otherwise and why; last a summary."""
    lines = [line for result in results for line in _told(result)]
    failed = sum(not result.ok for result in results)
    count = f"{len(results)} test{'' if len(results) == 1 else 's'}"
    lines.append(f"{count}, {failed} failed" if failed else f"{count}, all ok")
    return "".join(f"{printable(line)}\n" for line in lines)


def _told(result: Result) -> Iterator[str]:
    case = result.case
    if result.ok:
        yield f"ok      {case.name}"
        return
    yield f"failed  {case.name}  ({case.file}:{case.line})"
    for question in result.rehearsed.missing:
        yield f"  {question}"
    shown: set[int] = set()
    for difference in result.differences:
        yield f"  {difference.what}"
        yield f"    expected  {difference.expected}"
        yield f"    got       {difference.got}"
        said = difference.said
        if said is not None and id(said) not in shown:
            shown.add(id(said))
            yield f"  why {said.stage} {said.about}".rstrip() + f" was answered {said.code} {said.text}"
            yield from _trail(said.steps)


def _trail(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield from step_lines(step)


# --- for programs -----------------------------------------------------------------


def as_json(results: Sequence[Result]) -> dict[str, object]:
    """The tests for programs."""
    return {
        "tests": [_result(result) for result in results],
        "failed": sum(not result.ok for result in results),
        "ok": sum(result.ok for result in results),
    }


def _result(result: Result) -> dict[str, object]:
    message = result.rehearsed.queued
    return {
        "name": result.case.name,
        "file": result.case.file,
        "line": result.case.line,
        "ok": result.ok,
        "missing": list(result.rehearsed.missing),
        "differences": [{"what": each.what, "expected": each.expected, "got": each.got} for each in result.differences],
        "stages": [_said(said) for stage in STAGES for said in result.rehearsed.stages.get(stage, ())],
        "queued": None
        if message is None
        else {
            "sender": message.return_path,
            "recipients": [recipient.address for recipient in message.recipients],
            "header": list(result.rehearsed.header),
        },
    }


def _said(said: Said) -> dict[str, object]:
    decisive = said.decisive
    return {
        "stage": said.stage,
        "about": said.about,
        "code": said.code,
        "enhanced": said.enhanced,
        "text": said.text,
        "verdict": said.verdict,
        "rule": None if decisive is None else decisive.rule,
        "place": None if decisive is None else decisive.place,
        "steps": [
            {
                "rule": step.rule,
                "place": step.place,
                "reads": [{"name": name, "value": value} for name, value in step.reads],
                "said": step.said,
            }
            for step in said.steps
        ],
    }
