"""Compares a program's own record of its SQL (the oracle, tests/programs/oracle.h) with a tracer's events.

Within a thread the order of executions is fixed, between threads it is free; so lines are grouped by thread id.
A thread has three sequences, each compared in order: what the program executes, what SQLite executes inside that
(FTS5's shadow tables), and statements without text (schema loads), of which the oracle knows few.
Executions of which the end shows only later (an aborted sqlite3_exec, a statement left running) can come at any
place.  A field that is null in the oracle is not known there, and not compared.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Line = dict[str, Any]

EXACT: Final = (
    "sql_bytes",
    "vars",
    "bound_bytes",
    "rows",
    "changes",
    "rc",
    "fullscan_steps",
    "sorts",
    "autoindexes",
    "vm_steps",
    "reprepares",
    "filter_hits",
    "filter_misses",
)
FLAGS: Final = ("autocommit", "internal")

BETWEEN_BACKENDS: Final = (
    *EXACT,
    *FLAGS,
    "sql",
    "sql_truncated",
    "in_bytes",
    "rc_name",
    "end",
    "db",
    "incomplete",
)
"""Everything of a statement event but ids, times and addresses."""

RC_NAMES: Final = {
    1: "ERROR",
    4: "ABORT",
    5: "BUSY",
    8: "READONLY",
    9: "INTERRUPT",
    13: "FULL",
    18: "TOOBIG",
    20: "MISMATCH",
    100: "ROW",
    101: "DONE",
    275: "CONSTRAINT_CHECK",
    517: "BUSY_SNAPSHOT",
    787: "CONSTRAINT_FOREIGNKEY",
    1299: "CONSTRAINT_NOTNULL",
    1555: "CONSTRAINT_PRIMARYKEY",
    1811: "CONSTRAINT_TRIGGER",
    2067: "CONSTRAINT_UNIQUE",
}

_ENDS: Final = {
    "stopped": {"reset", "finalize"},
    "unseen": {"unseen", "reset", "finalize", "exit"},
    "exit": {"exit"},
}
_LATE_ENDS: Final = ("unseen", "exit")

# SQLite runs some statements with the connection's trace switched off: VACUUM's, and a check after CREATE TABLE.
_SILENT: Final = re.compile(r"""PRAGMA "[^"]*"\.integrity_check\('""")
_VACUUM: Final = re.compile(r"\s*VACUUM\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement.  `where` says which execution, readable; field is None for a whole line."""

    where: str
    field: str | None
    oracle: Any
    tracer: Any

    def __str__(self) -> str:
        if self.field is None:
            kind = "missing in the trace" if self.tracer is None else "in the trace only"
            return f"{self.where}: {kind}"
        return f"{self.where}: {self.field}: oracle {self.oracle!r}, trace {self.tracer!r}"


def report(differences: Sequence[Difference], limit: int = 40) -> str:
    """Return the differences as text, with a count of each field first."""
    counts = Counter(d.field or "line" for d in differences)
    head = f"{len(differences)} differences: " + ", ".join(f"{n} {f}" for f, n in counts.most_common())
    lines = [str(d) for d in differences[:limit]]
    if len(differences) > limit:
        lines.append(f"... and {len(differences) - limit} more")
    return "\n".join([head, *lines])


def read_lines(path: Path) -> list[Line]:
    """Return the objects of a file of JSON lines."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def executions(oracle: Iterable[Line]) -> list[Line]:
    """Return the oracle's lines that are executions."""
    return [line for line in oracle if line["record"] == "execution"]


def statements(events: Iterable[Line]) -> list[Line]:
    """Return the trace's statement events."""
    return [event for event in events if event["event"] == "statement"]


def check_oracle(oracle: Sequence[Line]) -> list[str]:
    """Check the oracle against SQLite's count of PROFILE callbacks; return what does not fit.

    SQLite calls back once per execution; twice when the schema turned out changed after the first attempt began,
    and not at all when a statement steps on after BUSY, when sqlite3_exec was aborted, and for a NULL text.
    """
    end = next((line for line in oracle if line["record"] == "end"), None)
    lines = executions(oracle)
    if end is None or end["executions"] != len(lines):
        return [f"the oracle has {len(lines)} executions, and ends with {end}"]
    if not end["trace"]:
        return []
    found: Counter[str] = Counter()
    for line in lines:
        if line["profiles"]:
            found[_text(line["sql"])] += line["profiles"]
    told = Counter({_text(line["sql"]): line["count"] for line in oracle if line["record"] == "profile"})
    return [
        f"{sql[:120]}: {told[sql]} PROFILE callbacks, {found[sql]} recorded"
        for sql in sorted(told.keys() | found.keys())
        if told[sql] != found[sql]
    ]


def compare(oracle: Sequence[Line], events: Sequence[Line]) -> list[Difference]:
    """Return every disagreement between the oracle and the statement events of one process."""
    by_tid: dict[int, tuple[list[Line], list[Line]]] = defaultdict(lambda: ([], []))
    for line in executions(oracle):
        by_tid[line["tid"]][0].append(line)
    for event in statements(events):
        by_tid[event["tid"]][1].append(event)
    found: list[Difference] = []
    pairs: list[tuple[Line, Line]] = []
    for tid, (wanted, seen) in by_tid.items():
        name = f"thread {wanted[0]['thread']}" if wanted else f"tid {tid}, which the oracle does not know"
        _compare_thread(name, wanted, seen, found, pairs)
    found += _identities(pairs)
    return found


def compare_backends(one: Sequence[Line], other: Sequence[Line]) -> list[Difference]:
    """Return every disagreement between two traces, of which thread ids were replaced by thread numbers."""
    found: list[Difference] = []
    # VACUUM gives its copy a name by chance, and its statements contain it.
    one, other = ([event | {"sql": _same_vacuum(event["sql"])} for event in events] for events in (one, other))
    threads = {event["tid"] for event in one} | {event["tid"] for event in other}
    for thread in sorted(threads):
        for internal in (False, True):
            a, b = (
                [e for e in events if e["tid"] == thread and e["internal"] is internal and e["end"] not in _LATE_ENDS]
                for events in (one, other)
            )
            _align(f"thread {thread}", a, b, found, _same_event)
        a, b = (
            sorted((e for e in events if e["tid"] == thread and e["end"] in _LATE_ENDS), key=lambda e: _text(e["sql"]))
            for events in (one, other)
        )
        _align(f"thread {thread}, late", a, b, found, _same_event)
    return found


def _same_vacuum(sql: Any) -> Any:
    return re.sub(r"\bvacuum_[0-9a-f]+", "vacuum_x", sql) if isinstance(sql, str) else sql


def with_thread_numbers(oracle: Sequence[Line], events: Sequence[Line]) -> list[Line]:
    """Return the statement events with the oracle's thread numbers as tid, so that two runs can be compared."""
    numbers = {line["tid"]: line["thread"] for line in executions(oracle)}
    return [event | {"tid": numbers.get(event["tid"], -event["tid"])} for event in statements(events)]


def check_stream(events: Sequence[Line]) -> list[str]:
    """Check what holds for every trace: the order of events, gap-free numbers, hits == emitted + filtered + lost."""
    wrong = []
    if events[0]["event"] != "session_start" or events[-1]["event"] != "session_end":
        wrong.append(f"the trace begins with {events[0]['event']} and ends with {events[-1]['event']}")
        return wrong
    first = events[0]["seq"]
    if [event["seq"] for event in events] != list(range(first, first + len(events))):
        wrong.append("seq has gaps")
    if len({event["session"] for event in events}) != 1:
        wrong.append("there is more than one session")
    end = events[-1]
    lost = sum(item["count"] for item in end["lost"] if item["type"] == "statement")
    if end["emitted"] != len(statements(events)):
        wrong.append(f"session_end has emitted {end['emitted']}, the trace has {len(statements(events))} statements")
    hits = end["hits"]["statement"] if isinstance(end["hits"], dict) else end["hits"]
    if hits != end["emitted"] + end["filtered"] + lost:
        wrong.append(f"hits {end['hits']} != emitted {end['emitted']} + filtered {end['filtered']} + lost {lost}")
    return wrong


# ---- One thread ----


def _compare_thread(
    name: str, wanted: list[Line], seen: list[Line], found: list[Difference], pairs: list[tuple[Line, Line]]
) -> None:
    def check(where: str, line: Line, event: Line, out: list[Difference]) -> None:
        pairs.append((line, event))
        _same_execution(where, line, event, out)

    late_events = [event for event in seen if event["end"] in _LATE_ENDS]
    late_lines: list[Line] = []
    in_order: list[Line] = []
    for line in wanted:
        # Where the tracer saw the end at once after all, the line is compared at its place.
        if line["late"] and any(_text(e["sql"]) == _text(line["sql"]) for e in late_events):
            late_lines.append(line)
        else:
            in_order.append(line)
    rest = _without_silent([event for event in seen if event["end"] not in _LATE_ENDS])
    for late in (late_lines, late_events):  # they come in any order
        late.sort(key=lambda x: (_key(x), x["rows"]))
    _align(f"{name}, late", late_lines, late_events, found, check)
    _align(
        name,
        [line for line in in_order if not line["internal"]],
        [event for event in rest if not event["internal"]],
        found,
        check,
    )
    _align(
        f"{name}, internal",
        [line for line in in_order if line["internal"] and line["sql"] is not None],
        [event for event in rest if event["internal"] and event["sql"] is not None],
        found,
        check,
    )
    _compare_textless(name, in_order, rest, found)


def _without_silent(seen: list[Line]) -> list[Line]:
    """Leave out what the oracle cannot know, because SQLite executes it with the trace switched off."""
    kept: list[Line] = []
    inside: list[Line] = []  # since the last statement of the program, which ends after its inner ones
    for event in seen:
        if event["internal"]:
            if not _SILENT.match(_text(event["sql"])):
                inside.append(event)
            continue
        if not _VACUUM.match(_text(event["sql"])):
            kept += inside
        inside = []
        kept.append(event)
    return kept + inside


def _compare_textless(name: str, wanted: list[Line], seen: list[Line], found: list[Difference]) -> None:
    """Of statements without text, the oracle knows those that it made with sqlite3_blob_open."""
    events = [event for event in seen if event["sql"] is None and event["internal"]]
    for line in wanted:
        if line["sql"] is not None:
            continue
        for event in events:
            if (event["rows"], event["end"], event["rc"]) == (line["rows"], line["end"], line["rc"]):
                events.remove(event)
                break
        else:
            found.append(Difference(f"{name}: {line['case']}: {_brief(line)}", None, line, None))
    found += [
        Difference(f"{name}: statement without text", "in_bytes, changes", 0, event)
        for event in events
        if event["vars"] or event["bound_bytes"] or event["in_bytes"] or event["changes"]
    ]


Check = Callable[[str, Line, Line, list[Difference]], None]


def _align(name: str, wanted: list[Line], seen: list[Line], found: list[Difference], check: Check) -> None:
    """Pair two sequences by their SQL; one missing line makes one difference, not a cascade."""

    def pair(ours: list[Line], theirs: list[Line], keys: Sequence[Callable[[Line], object]]) -> None:
        if [_key(line) for line in ours] == [_key(event) for event in theirs]:
            for line, event in zip(ours, theirs, strict=True):
                check(_where(name, line), line, event, found)
            return
        if not keys:
            found.extend(Difference(_where(name, line), None, line, None) for line in ours)
            found.extend(Difference(_where(name, event), None, None, event) for event in theirs)
            return
        key, *weaker = keys
        matcher = difflib.SequenceMatcher(None, [key(x) for x in ours], [key(x) for x in theirs], autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            pair(ours[a:b], theirs[c:d], () if tag == "equal" else weaker)

    # Of executions of one text, those with the same result belong together; what is left over, by the text.
    pair(wanted, seen, (lambda x: (_key(x), x["rows"], x["rc"]), _key))


def _same_execution(where: str, line: Line, event: Line, found: list[Difference]) -> None:
    def differ(name: str, want: Any, got: Any) -> None:
        found.append(Difference(where, name, want, got))

    # A statement that was destroyed out of sight, or with its process, could not be read at its end.
    unreadable = line["late"] and event["incomplete"]
    for name in EXACT:
        want = line[name]
        if want is not None and want != event[name] and not (unreadable and event[name] is None):
            differ(name, want, event[name])
    for name in FLAGS:
        want = line[name]
        if want is not None and want is not event[name] and not (unreadable and event[name] is None):
            differ(name, want, event[name])
    if event["end"] not in _ENDS.get(line["end"], {line["end"]}):
        differ("end", line["end"], event["end"])
    if event["incomplete"] and not line["late"]:
        differ("incomplete", False, event["incomplete"])
    if event["rc_name"] != RC_NAMES.get(event["rc"], event["rc_name"]):
        differ("rc_name", RC_NAMES[event["rc"]], event["rc_name"])
    if (line["db"] or None) != (event["db"] or None):
        differ("db", line["db"], event["db"])
    _same_text(line, event, differ)
    if event["bound_bytes"] is not None and event["in_bytes"] != event["sql_bytes"] + event["bound_bytes"]:
        differ("in_bytes", event["sql_bytes"] + event["bound_bytes"], event["in_bytes"])
    if not 0 <= event["step_us"] <= event["duration_us"] + 0.1:
        differ("step_us", f"0 to {event['duration_us']}", event["step_us"])


def _same_text(line: Line, event: Line, differ: Callable[[str, Any, Any], None]) -> None:
    if not event["sql_truncated"]:
        if line["sql"] != event["sql"]:
            differ("sql", _abbreviated(line["sql"]), _abbreviated(event["sql"]))
    elif not _text(line["sql"]).startswith(_text(event["sql"])) or line["sql_bytes"] <= MAX_WHOLE_TEXT:
        differ("sql_truncated", _abbreviated(line["sql"]), _abbreviated(event["sql"]))


MAX_WHOLE_TEXT: Final = 1 << 20
"""Texts up to this many bytes must arrive whole, unless the user sets a limit."""


def _same_event(where: str, one: Line, other: Line, found: list[Difference]) -> None:
    found += [Difference(where, name, one[name], other[name]) for name in BETWEEN_BACKENDS if one[name] != other[name]]


def _identities(pairs: Sequence[tuple[Line, Line]]) -> list[Difference]:
    """One connection or statement of the program has one name in the trace (names may be used again later)."""
    found = []
    for name in ("conn", "stmt"):
        known: dict[int, Any] = {}
        for line, event in pairs:
            number = line[name]
            if number is not None and known.setdefault(number, event[name]) != event[name]:
                found.append(Difference(f"{line['case']}: {_brief(line)}", name, known[number], event[name]))
                known[number] = event[name]
    return found


# ---- Texts ----


def _text(sql: Any) -> str:
    """Return one form for text, for bytes that are not UTF-8, and for no text."""
    return sql if isinstance(sql, str) else json.dumps(sql)


def _key(line: Line) -> str:
    text = _text(line["sql"])
    return text if len(text) < 1000 else f"{text[:1000]} {line['sql_bytes']}"


def _brief(line: Line) -> str:
    return f"{_abbreviated(line['sql'])} ({line['rows']} rows, {line['rc']}, {line['end']})"


def _abbreviated(sql: Any) -> str:
    text = _text(sql)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]} ({len(text)} characters)"


def _where(name: str, line: Line) -> str:
    case = f"{line['case']}: " if "case" in line else ""
    return f"{name}: {case}{_brief(line)}"
