"""A ring written by Python, as agent_js/hooks.c writes it, for tests of the reader."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field

import numpy as np

from sqltrace.backends.ring import HEADER, HEADER_BYTES, MAGIC, SLOT, Geometry
from sqltrace.events.wire import STATEMENT, RecordType


def statement(number: int, pid: int = 1) -> bytes:
    row = np.zeros(1, dtype=STATEMENT)
    row["type"], row["size"] = RecordType.STATEMENT, STATEMENT.itemsize
    row["pid"], row["rows"] = pid, number
    return row.tobytes()


def text(number: int, data: bytes, pid: int = 1) -> bytes:
    size = (56 + len(data) + 7) & ~7
    head = struct.pack("<HHIIIQQQQII", RecordType.TEXT, 1, size, pid, pid, number, 7, 8, 0, len(data), 0)
    return (head + data).ljust(size, b"\0")


@dataclass
class RingWriter:
    slots: int = 64
    executions: int = 16
    fd: int = field(init=False)

    def __post_init__(self) -> None:
        self.geometry = Geometry(self.slots, self.executions)
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, self.geometry.size)
        self.memory = mmap.mmap(self.fd, self.geometry.size)
        self.header = np.frombuffer(self.memory, HEADER, 1)
        self.header["magic"], self.header["slots"] = MAGIC, self.slots

    @property
    def head(self) -> int:
        return int(self.header["head"][0])

    @property
    def tail(self) -> int:
        return int(self.header["tail"][0])

    def reserve(self, size: int) -> int | None:
        slots = -(-size // SLOT)
        if self.head + slots - self.tail > self.slots:
            return None
        position = self.head
        self.header["head"] = position + slots
        return position

    def fill(self, position: int, record: bytes) -> None:
        start = self.geometry.payload + position % self.slots * SLOT
        self.memory[start : start + len(record)] = record

    def publish(self, position: int) -> None:
        struct.pack_into("<Q", self.memory, HEADER_BYTES + 8 * (position % self.slots), position + 1)

    def write(self, record: bytes) -> bool:
        position = self.reserve(len(record))
        if position is None:
            return False
        self.fill(position, record)
        self.publish(position)
        return True
