"""The hooks' logic, run in user space: no root, no kernel, every case at will."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from sqltrace.events import wire
from sqltrace.events.wire import End
from tests.bpf.harness import BLOB, INT, PID, STACK, TEXT, TID, ZERO, Database, Prepared, World, compiled

CONN, STMT, OTHER = 0x10000000, 0x20000000, 0x30000000
ROW, DONE, BUSY, CONSTRAINT = 100, 101, 5, 19


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory.mktemp("bpf"))


@pytest.fixture
def world(library: ctypes.CDLL) -> World:
    return World(library)


@pytest.fixture
def db(world: World) -> Database:
    return Database(world, CONN, b"/tmp/a.db")


def execute(world: World, stmt: Prepared, *, rows: int = 0, rc: int = DONE, sp: int = STACK, ns: int = 100) -> None:
    """Steps to the end, as a program does, and the reset after it."""
    for n in range(rows + 1):
        world.step(stmt.at, sp)
        stmt.running()
        world.later(ns)
        if n == rows:
            stmt.running(False)
            stmt.count(0, 0, 0, 10)
        world.returns(ROW if n < rows else rc, sp)
    world.reset(stmt.at, sp)


def end(execution: np.void) -> End:
    return End(int(execution["flags"]) & wire.END_MASK)


def test_an_execution_is_database_text_and_one_record_byte_for_byte(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT ?, ?, ?")
    s.bind((INT, 0), (TEXT, 5), (BLOB | ZERO, 1000))
    s.count(1, 2, 3, 4, 5, 6, 7, 8)
    world.step(s.at)
    world.later(700)
    s.running()
    world.returns(ROW)
    world.later(50)
    world.step(s.at)
    world.later(300)
    s.count(11, 2, 4, 54, 5, 6, 9, 11)
    s.running(False)
    world.returns(DONE)
    database, text, statement = world.raw()
    assert wire.parse_one(database) == wire.Database(PID, 1, CONN, b"/tmp/a.db")
    assert wire.parse_one(text) == wire.Text(PID, 1, STMT, CONN, wire.TEXT_LAST, 0, b"SELECT ?, ?, ?")
    expected = np.zeros(1, dtype=wire.STATEMENT)
    for name, value in {
        "type": wire.RecordType.STATEMENT,
        "flags": End.DONE | wire.AUTOCOMMIT,
        "size": 128,
        "pid": PID,
        "tid": TID,
        "begin_ns": 1000,
        "end_ns": 2050,
        "step_ns": 1000,
        "stmt": STMT,
        "conn": CONN,
        "text_id": 1,
        "rows": 1,
        "bound_bytes": 8 + 5 + 1000,
        "vars": 3,
        "rc": DONE,
        "fullscan_steps": 10,
        "autoindexes": 1,
        "vm_steps": 50,
        "filter_misses": 2,
        "filter_hits": 3,
    }.items():
        expected[name] = value
    assert statement == expected.tobytes()
    world.reset(s.at)
    assert world.raw() == [], "a reset after the end ends nothing"
    assert world.balanced(1)


def test_the_text_is_sent_once(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    for _ in range(3):
        execute(world, s, rows=2)
    records = world.records()
    assert [type(r).__name__ for r in records] == ["Database", "Text", "ndarray", "ndarray", "ndarray"]


def test_a_reset_before_the_end_and_a_finalize_end_an_execution(world: World, db: Database) -> None:
    for number, ends in enumerate((world.reset, world.finalize)):
        s = Prepared(world, STMT + number * 0x400000, db, b"SELECT 1")
        world.step(s.at)
        s.running()
        world.returns(ROW)
        ends(s.at)
    executions = world.executions()
    assert [(end(e), e["rc"], e["rows"]) for e in executions] == [(End.RESET, ROW, 1), (End.FINALIZE, ROW, 1)]
    assert world.balanced(2)


def test_an_error_has_the_extended_code_of_its_connection_only_if_it_is_its_own(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"INSERT INTO t VALUES(1)")
    db.error(2067)
    db.begin()
    execute(world, s, rc=CONSTRAINT)
    execute(world, s, rc=BUSY)
    first, second = world.executions()
    assert (end(first), first["rc"], second["rc"]) == (End.ERROR, 2067, BUSY)
    assert not first["flags"] & wire.AUTOCOMMIT


def test_changes_of_nested_statements_are_not_the_outers(world: World, db: Database) -> None:
    outer, inner = Prepared(world, STMT, db, b"SELECT f()"), Prepared(world, OTHER, db, b"INSERT")
    world.step(outer.at, STACK)
    outer.running()
    world.step(inner.at, STACK - 0x400)
    db.changed(3)
    world.returns(DONE, STACK - 0x400)
    world.returns(DONE, STACK)
    first, second = world.executions()
    assert (first["stmt"], first["changes"], first["flags"] & wire.NESTED) == (OTHER, 3, wire.NESTED)
    assert (second["stmt"], second["changes"], second["flags"] & wire.NESTED) == (STMT, 0, 0)


def test_a_reset_by_step_itself_ends_nothing(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    world.step(s.at)
    s.running()
    world.reset(s.at, STACK - 0x100)
    assert world.executions() == []
    world.returns(DONE)
    assert [end(e) for e in world.executions()] == [End.DONE]


def test_a_return_that_never_came_skews_no_later_frame(world: World, db: Database) -> None:
    lost, s = Prepared(world, STMT, db, b"SELECT longjmp()"), Prepared(world, OTHER, db, b"SELECT 2")
    world.step(lost.at, STACK - 0x800)
    lost.running()
    world.later(100)
    execute(world, s, rows=1, sp=STACK)  # further up the stack: the other's frame is gone
    (e,) = world.executions()
    assert (e["stmt"], e["rows"], e["step_ns"], e["flags"] & wire.NESTED) == (OTHER, 1, 200, 0)
    world.returns(DONE, STACK - 0x800)
    assert world.executions() == [], "a return without an entry is nobody's"


def test_a_return_without_its_entry_is_nobodys(world: World, db: Database) -> None:
    world.returns(DONE)
    assert world.raw() == []
    assert world.total("hits") == 0


def test_a_statement_that_was_under_way_before_us_is_incomplete(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    s.running()
    world.step(s.at)
    s.running(False)
    world.returns(DONE)
    (e,) = world.executions()
    assert e["flags"] & wire.INCOMPLETE


def test_a_statement_that_vanished_unseen_is_reported_and_not_continued(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    world.step(s.at)
    s.running()
    world.returns(ROW)
    s.reborn()
    execute(world, s)
    first, second = world.executions()
    assert (end(first), first["rows"]) == (End.UNSEEN, 1)
    assert first["flags"] & wire.INCOMPLETE
    assert first["flags"] & wire.NO_COUNTERS
    assert (end(second), second["rows"]) == (End.DONE, 0)
    assert world.balanced(2)


def test_another_statement_at_the_same_address_has_its_own_text(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    execute(world, s)
    s.reborn()  # even its text lies at the same address
    execute(world, s)
    assert [e["text_id"] for e in world.executions()] == [1, 2]


def test_finalize_forgets_a_statement(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    execute(world, s)
    world.finalize(s.at)
    assert (world.total("inserted"), world.total("deleted")) == (1, 1)


@pytest.mark.parametrize("length", [0, 1, 2046, 2047, 2048, 16384, 40_000, 1_100_000])
def test_a_text_arrives_whole_in_pieces(world: World, db: Database, length: int) -> None:
    sql = bytes(65 + n % 26 for n in range(length))
    execute(world, Prepared(world, STMT, db, sql))
    pieces = [r for r in world.records() if isinstance(r, wire.Text)]
    assert b"".join(p.data for p in pieces) == sql
    assert [p.offset for p in pieces] == [sum(len(p.data) for p in pieces[:n]) for n in range(len(pieces))]
    assert [bool(p.flags & wire.TEXT_LAST) for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_text_of_sqlites_own_is_null_and_an_unreadable_one_truncated(world: World, db: Database) -> None:
    execute(world, Prepared(world, STMT, db, None))
    s = Prepared(world, OTHER, db, b"x")
    s._vdbe[248:256] = (0xDEAD0000).to_bytes(8, "little")
    execute(world, s)
    null, unreadable = [r for r in world.records() if isinstance(r, wire.Text)]
    assert null.flags == wire.TEXT_NULL | wire.TEXT_LAST
    assert unreadable.flags == wire.TEXT_NULL | wire.TEXT_LAST | wire.TEXT_TRUNCATED


def test_an_unreadable_statement_is_nobodys_and_one_that_vanishes_has_no_counters(world: World, db: Database) -> None:
    world.step(0xBAD0000)
    assert (world.raw(), world.total("hits")) == ([], 0)
    s = Prepared(world, STMT, db, b"SELECT 1")
    world.step(s.at)
    world.forget_memory()
    world.returns(DONE)
    (e,) = world.executions()
    assert e["flags"] & (wire.NO_COUNTERS | wire.INCOMPLETE) == wire.NO_COUNTERS | wire.INCOMPLETE


@pytest.mark.parametrize("count", [4, 5, 64, 65, 1025, 32766])
def test_bound_bytes_are_exact_for_any_number_of_values(world: World, db: Database, count: int) -> None:
    s = Prepared(world, STMT, db, b"SELECT ?")
    world.put(0x50000000, 1)
    values = [(TEXT, n % 7) if n % 3 else (INT, 12345) for n in range(count)]
    block = world.put(0x60000000, 56 * count)
    s.bind(*values[:4])
    for n, (flags, length) in enumerate(values):
        block[56 * n + 16 : 56 * n + 22] = length.to_bytes(4, "little") + flags.to_bytes(2, "little")
    s._vdbe[32:34] = count.to_bytes(2, "little")
    s._vdbe[128:136] = (0x60000000).to_bytes(8, "little")
    execute(world, s)
    (e,) = world.executions()
    assert e["vars"] == count
    assert e["bound_bytes"] == sum(8 if f == INT else n for f, n in values)


def test_a_full_ring_is_counted_by_record(world: World, db: Database) -> None:
    s = Prepared(world, STMT, db, b"SELECT 1")
    world.ring(0)
    execute(world, s)
    assert (world.total(("database", "ring_full")), world.total(("statement", "ring_full"))) == (1, 1)
    world.ring(1 << 20)
    execute(world, s)
    records = world.records()
    assert [type(r).__name__ for r in records] == ["Database", "Text", "ndarray"], "the text is sent when there is room"
    world.ring(60)
    execute(world, Prepared(world, OTHER, db, b"SELECT 2"))
    assert world.total(("text", "ring_full")) == 1
    assert world.balanced(1)


def test_steps_beyond_the_deepest_frame_are_counted(world: World, db: Database) -> None:
    statements = [Prepared(world, STMT + n * 0x400000, db, b"SELECT f()") for n in range(10)]
    for n, s in enumerate(statements):
        world.step(s.at, STACK - n * 0x100)
        s.running()
    for n in reversed(range(10)):
        world.returns(DONE, STACK - n * 0x100)
    assert world.total(("step", "too_deep")) == 2
    assert [e["stmt"] for e in world.executions()] == [s.at for s in reversed(statements[:8])]


def test_threads_beyond_the_table_are_counted(world: World, db: Database) -> None:
    for tid in range(6):
        world.thread(PID, TID + tid)
        execute(world, Prepared(world, STMT + tid * 0x400000, db, b"SELECT 1"))
    assert world.total(("step", "too_many_threads")) == 2
    assert world.balanced(4)


def test_processes_that_are_not_observed_leave_no_trace(world: World, db: Database) -> None:
    world.thread(PID + 1, PID + 1)
    execute(world, Prepared(world, STMT, db, b"SELECT 1"))
    assert (world.raw(), world.total("hits"), world.total("inserted")) == ([], 0, 0)


def test_a_running_statement_that_had_to_make_room_is_missing_in_the_ends(world: World, db: Database) -> None:
    first = Prepared(world, STMT, db, b"SELECT 'first'")
    world.step(first.at)
    first.running()
    world.returns(ROW)
    block = world.put(OTHER, 512 * 64)
    for n in range(64):
        block[512 * n : 512 * n + 8] = CONN.to_bytes(8, "little")
        world.step(OTHER + 512 * n)
        world.returns(DONE)
    world.reset(first.at)
    assert STMT not in [e["stmt"] for e in world.executions()]
    assert world.total("hits") - world.total("ends") == 1
    assert world.total("inserted") == 65


def test_what_is_too_short_is_left_out_and_counted(tmp_path: Path) -> None:
    world = World(compiled(tmp_path, MIN_DURATION_NS=1000))
    s = Prepared(world, STMT, Database(world, CONN, b"a"), b"SELECT 1")
    for ns in (999, 1000):
        execute(world, s, ns=ns)
    assert [e["end_ns"] - e["begin_ns"] for e in world.executions()] == [1000]
    assert world.balanced(1)


def test_what_succeeded_is_left_out_and_counted(tmp_path: Path) -> None:
    world = World(compiled(tmp_path, ERRORS_ONLY=1))
    s = Prepared(world, STMT, Database(world, CONN, b"a"), b"SELECT 1")
    for rc in (DONE, BUSY, DONE):
        execute(world, s, rc=rc)
    assert [e["rc"] for e in world.executions()] == [BUSY]
    assert world.total("filtered") == 2
    assert world.balanced(1)


def test_what_is_muted_is_left_out_and_counted_until_another_statement_takes_its_place(tmp_path: Path) -> None:
    world = World(compiled(tmp_path, MUTING=1))
    s = Prepared(world, STMT, Database(world, CONN, b"a"), b"SELECT 1")
    execute(world, s)
    world.mute(1)
    execute(world, s)
    assert len(world.executions()) == 1
    s.reborn()
    execute(world, s)
    (e,) = world.executions()
    assert e["text_id"] == 2
    assert world.balanced(2)
