"""The reader of the BPF ring against a ring that the test writes."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from sqltrace.backends.bcc.ringbuf import RingBuffer
from sqltrace.events import wire

PAGE = mmap.PAGESIZE
SIZE = 1 << 16


class Writer:
    """The kernel's side; the double mapping of the data is made by writing everything twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = 0

    def _bytes(self, position: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            at = (position + offset) % SIZE
            os.pwrite(self.fd, bytes([byte]), 2 * PAGE + at)
            os.pwrite(self.fd, bytes([byte]), 2 * PAGE + SIZE + at)

    def put(self, data: bytes, flags: int = 0) -> None:
        padded = data.ljust((len(data) + 7) & ~7, b"\0")
        self._bytes(self.position, struct.pack("<II", len(data) | flags, 0) + padded)
        self.position += 8 + len(padded)
        os.pwrite(self.fd, struct.pack("<Q", self.position), PAGE)


@pytest.fixture
def writer() -> Iterator[Writer]:
    w = Writer()
    yield w
    os.close(w.fd)


@pytest.fixture
def ring(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RingBuffer]:
    class NoPoll:
        def register(self, *_: object) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr("sqltrace.backends.bcc.ringbuf.select.epoll", NoPoll)
    r = RingBuffer(writer.fd, SIZE)
    yield r
    r.close()


def statement(rows: int) -> bytes:
    row = np.zeros(1, dtype=wire.STATEMENT)
    row["type"], row["size"], row["rows"] = wire.RecordType.STATEMENT, 128, rows
    return row.tobytes()


def text(data: bytes) -> bytes:
    head = struct.pack("<HHIIIQQQQII", wire.RecordType.TEXT, 1, 56 + len(data), 1, 1, 9, 0, 0, 0, len(data), 0)
    return head + data


def test_a_run_of_statements_is_one_batch(writer: Writer, ring: RingBuffer) -> None:
    for n in range(100):
        writer.put(statement(n))
    (batch,), malformed = ring.read()
    assert batch["rows"].tolist() == list(range(100))
    assert malformed == 0
    assert ring.read() == ([], 0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_does_not_change_when_the_ring_is_written_again(writer: Writer, ring: RingBuffer, count: int) -> None:
    for n in range(count):
        writer.put(statement(n))
    (batch,), _ = ring.read()
    writer._bytes(0, b"\xff" * 136 * count)
    assert batch["rows"].tolist() == list(range(count))


def test_order_is_kept_between_kinds_and_over_the_end_of_the_ring(writer: Writer, ring: RingBuffer) -> None:
    seen: list[object] = []
    wrote: list[object] = []
    for n in range(1500):  # 1500 * 136 bytes wrap the 64 KiB several times
        if n % 7 == 3:
            writer.put(text(b"x" * (n % 50)))
            wrote.append(b"x" * (n % 50))
        else:
            writer.put(statement(n))
            wrote.append(n)
        if n % 100 == 99:
            for record in ring.read()[0]:
                seen += [record.data] if isinstance(record, wire.Text) else record["rows"].tolist()
    assert seen == wrote


def test_a_text_as_long_as_a_statement_record_is_still_a_text(writer: Writer, ring: RingBuffer) -> None:
    writer.put(text(b"y" * 72))
    assert len(text(b"y" * 72)) == 128
    (record,), _ = ring.read()
    assert isinstance(record, wire.Text)
    assert record.data == b"y" * 72


def test_a_busy_record_holds_back_what_follows(writer: Writer, ring: RingBuffer) -> None:
    writer.put(statement(1))
    at = writer.position
    writer.put(statement(2), flags=1 << 31)
    writer.put(statement(3))
    assert ring.read()[0][0]["rows"].tolist() == [1]
    assert ring.read()[0] == []
    writer._bytes(at, struct.pack("<I", 128))
    assert ring.read()[0][0]["rows"].tolist() == [2, 3]


def test_discarded_and_malformed_records_are_skipped_and_counted(writer: Writer, ring: RingBuffer) -> None:
    writer.put(statement(1), flags=1 << 30)
    writer.put(b"garbage!garbage!")
    writer.put(statement(2))
    records, malformed = ring.read()
    assert [r["rows"].tolist() for r in records] == [[2]]
    assert malformed == 1
