"""Reader of a BPF ring buffer through its memory map, in batches.

bcc's reader calls Python once per record, 154,000 a second at best; runs of equally long records copied by numpy
come at 1.4 million a second (docs/decisions/ has the figures).
Layout (kernel/bpf/ringbuf.c): one page with the consumer's position, one page with the producer's, then the data,
mapped twice in a row so that no record is ever split.  A record has an 8-byte header: its length, a busy bit while
it is being written, a discard bit.
"""

from __future__ import annotations

import ctypes
import mmap
import select

import numpy as np

from sqltrace.events.wire import STATEMENT, MalformedRecordError, Record, RecordType, parse_one

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8
_STRIDE = _HEADER + STATEMENT.itemsize
_RUN_HEAD = np.dtype({"names": ["length", "type"], "formats": ["<u4", "<u2"], "offsets": [0, 8], "itemsize": _STRIDE})
_MAX_RUN = 8192


class RingBuffer:
    """The consumer's side.  One thread only."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._map = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = ctypes.c_uint64.from_buffer(self._consumer_map)
        self._view = memoryview(self._map)
        self._producer = self._view[:8].cast("Q")
        self._data = self._view[page : page + 2 * size]
        self._words = self._data.cast("I")
        self._bytes = np.frombuffer(self._data, dtype=np.uint8)
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def register(self, fd: int) -> None:
        """Let `wait` also return when this descriptor becomes readable."""
        self._poll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        """Undo `register`."""
        self._poll.unregister(fd)

    def wait(self, timeout: float) -> None:
        """Sleep until there is something to read, or `timeout` seconds."""
        self._poll.poll(timeout)

    def read(self, limit: int = 4 << 20) -> tuple[list[Record], int]:
        """Take up to `limit` bytes of records; return them and how many were malformed."""
        records: list[Record] = []
        malformed = 0
        position = start = self._consumer.value
        end = min(self._producer[0], start + limit)
        mask = self._size - 1
        while position < end:
            at = position & mask
            length = self._words[at >> 2]
            if length & _BUSY:
                break
            size = length & ~_DISCARD
            if size == STATEMENT.itemsize and not length & _DISCARD:
                run = self._statements(at, min((end - position) // _STRIDE, _MAX_RUN))
                if run is not None:
                    records.append(run)
                    position += _STRIDE * len(run)
                    continue
            if not length & _DISCARD:
                try:
                    records.append(parse_one(self._data[at + _HEADER : at + _HEADER + size]))
                except MalformedRecordError:
                    malformed += 1
            position += (size + _HEADER + 7) & ~7
        if position != start:
            self._consumer.value = position
        return records, malformed

    def _statements(self, at: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.void]] | None:
        """Copy the longest run of statement records that starts here, `most` records at most."""
        heads = self._bytes[at : at + most * _STRIDE].view(_RUN_HEAD)
        fits = (heads["length"] == STATEMENT.itemsize) & (heads["type"] == RecordType.STATEMENT)
        count = most if fits.all() else int(fits.argmin())
        if count == 0:
            return None
        rows = self._bytes[at : at + count * _STRIDE].reshape(count, _STRIDE)[:, _HEADER:]
        # A copy in any case: a single row is contiguous as it is, and would stay a view of memory that is reused.
        return rows.copy(order="C").view(STATEMENT).reshape(count)

    def close(self) -> None:
        """Give the memory back."""
        self._poll.close()
        del self._bytes
        self._words.release()
        self._data.release()
        self._producer.release()
        self._view.release()
        self._map.close()
        del self._consumer
        self._consumer_map.close()
