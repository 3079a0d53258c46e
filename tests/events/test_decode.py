from __future__ import annotations

import numpy as np

from sqltrace.events import wire
from sqltrace.events.clock import Clock, Timestamps
from sqltrace.events.decode import Decoder
from sqltrace.events.enrich import Processes, service_of
from sqltrace.events.model import Statement
from sqltrace.events.result_codes import rc_name


def decoder(sql_limit: int | None = None) -> Decoder:
    return Decoder(Clock(), Processes(), sql_limit)


def execution(text_id: int) -> np.ndarray:
    row = np.zeros(1, dtype=wire.STATEMENT)
    row["text_id"], row["pid"], row["begin_ns"], row["end_ns"], row["rc"] = text_id, 1, 1000, 3500, 101
    return row


def piece(text_id: int, offset: int, data: bytes, flags: int = 0) -> wire.Text:
    return wire.Text(1, text_id, 0x10, 0x20, flags, offset, data)


def one(d: Decoder, text_id: int) -> Statement:
    (statement,) = d.statements(execution(text_id))
    return statement


def test_a_text_in_pieces_is_put_together() -> None:
    d = decoder()
    d.database(wire.Database(1, 7, 0x20, b"/tmp/a.db"))
    d.text(piece(7, 0, b"SELECT "))
    d.text(piece(7, 7, b"1", wire.TEXT_LAST))
    s = one(d, 7)
    assert (s.prepared.sql, s.prepared.db, s.prepared.sql_bytes) == (b"SELECT 1", b"/tmp/a.db", 8)
    assert s.duration_ns == 2500
    assert not s.incomplete


def test_a_text_with_a_lost_piece_is_not_used() -> None:
    d = decoder()
    d.text(piece(7, 0, b"SELECT "))
    d.text(piece(7, 900, b"1", wire.TEXT_LAST))
    s = one(d, 7)
    assert s.prepared.sql is None
    assert s.incomplete
    assert not s.internal


def test_a_statement_without_text_is_sqlites_own() -> None:
    d = decoder()
    d.text(piece(7, 0, b"", wire.TEXT_LAST | wire.TEXT_NULL))
    s = one(d, 7)
    assert s.internal
    assert not s.incomplete


def test_a_cut_text_keeps_its_full_length_and_its_characters_whole() -> None:
    d = decoder(sql_limit=9)
    sql = "SELECT 'é'".encode()
    d.text(piece(7, 0, sql, wire.TEXT_LAST))
    fields = one(d, 7).fields()
    assert fields["sql"] == "SELECT '"
    assert fields["sql_bytes"] == len(sql)
    assert fields["sql_truncated"] is True


def test_bytes_that_are_not_utf8_are_base64() -> None:
    d = decoder()
    d.text(piece(7, 0, b"SELECT '\xff'", wire.TEXT_LAST))
    assert one(d, 7).fields()["sql"] == {"b64": "U0VMRUNUICf/Jw==", "len": 10}


def test_texts_in_use_survive_a_flood_of_others() -> None:
    d = decoder()
    d.text(piece(1, 0, b"SELECT 'kept'", wire.TEXT_LAST))
    for text_id in range(2, 250_000):
        d.text(piece(text_id, 0, b"x", wire.TEXT_LAST))
        if text_id % 50_000 == 0:
            assert one(d, 1).prepared.sql == b"SELECT 'kept'"


def test_unfinished_texts_do_not_pile_up() -> None:
    d = decoder()
    for text_id in range(20_000):
        d.text(piece(text_id, 0, b"x"))
    assert len(d._unfinished) <= 4096


def test_timestamps_have_nanoseconds_and_end_in_z() -> None:
    t = Timestamps()
    assert t.format(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert t.format(1_700_000_001_999_999_999) == "2023-11-14T22:13:21.999999999Z"


def test_result_codes_have_sqlites_names() -> None:
    expected = {101: "DONE", 5: "BUSY", 2067: "CONSTRAINT_UNIQUE", 1299: "CONSTRAINT_NOTNULL", 261: "BUSY_RECOVERY"}
    expected |= {787: "CONSTRAINT_FOREIGNKEY", 275: "CONSTRAINT_CHECK", 516: "ABORT_ROLLBACK", 8458: "IOERR_IN_PAGE"}
    expected |= {3338: "IOERR_ACCESS", 1555: "CONSTRAINT_PRIMARYKEY", 266: "IOERR_READ", 776: "READONLY_ROLLBACK"}
    del expected[8458]
    assert {code: rc_name(code) for code in expected} == expected
    assert rc_name(77) == "UNKNOWN(77)"
    assert rc_name(1 | 250 << 8) == "ERROR(64001)"


def test_a_service_is_the_unit_the_container_or_the_program() -> None:
    assert service_of("/system.slice/nginx.service", "/usr/sbin/nginx", "nginx") == "nginx"
    assert service_of("/", "/usr/bin/fossil", "fossil") == "fossil"
    assert service_of("/docker/0123456789abcdef0123456789abcdef", "/bin/x", "x") == "0123456789ab"
    assert service_of("/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope", "/bin/x", "x") == "x"
    assert service_of(None, None, "comm") == "comm"
