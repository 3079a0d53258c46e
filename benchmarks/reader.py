"""How many statement events a second the reader can turn into JSON lines."""

from __future__ import annotations

import os
import time

import numpy as np

from sqltrace.events import wire
from sqltrace.events.clock import Clock
from sqltrace.events.decode import Decoder
from sqltrace.events.enrich import Processes
from sqltrace.sinks.jsonl import JsonLines

EVENTS = 200_000


def totals_by_text(batch: wire.StatementBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what a counting view needs of a batch: text ids, and for each of them executions, nanoseconds, rows."""
    texts, which, counts = np.unique(batch["text_id"], return_inverse=True, return_counts=True)
    duration = np.bincount(which, weights=batch["end_ns"] - batch["begin_ns"])
    return texts, counts, duration, np.bincount(which, weights=batch["rows"])


def table() -> None:
    """Measure and print."""
    decoder = Decoder(Clock(), Processes())
    for text_id in range(1, 21):
        decoder.database(wire.Database(os.getpid(), text_id, 1, b"/tmp/a.db"))
        text = b"SELECT a, b, c FROM t WHERE id = ? AND name LIKE ? ORDER BY a"
        decoder.text(wire.Text(os.getpid(), text_id, 2, 1, wire.TEXT_LAST, 0, text))
    batch = np.zeros(EVENTS, dtype=wire.STATEMENT)
    batch["pid"] = os.getpid()
    batch["text_id"] = np.arange(EVENTS) % 20 + 1
    batch["begin_ns"] = np.arange(EVENTS) * 1000
    batch["end_ns"] = batch["begin_ns"] + 701
    batch["rc"] = 101
    print("\nReader, one thread, events a second")
    start = time.process_time()
    for chunk in np.split(batch, EVENTS // 8000):
        totals_by_text(chunk)
    print(f"{'number, time and rows by statement, no event':<48}{EVENTS / (time.process_time() - start):>12,.0f}")
    for name, path in (("decode only", None), ("decode, JSON lines to /dev/null", os.devnull)):
        start = time.process_time()
        if path is None:
            for _ in decoder.statements(batch):
                pass
        else:
            sink = JsonLines(open(path, "wb", buffering=0), "0" * 32)  # noqa: SIM115 - the sink closes it
            sink.statements(decoder.statements(batch))
            sink.close()
        print(f"{name:<48}{EVENTS / (time.process_time() - start):>12,.0f}")
