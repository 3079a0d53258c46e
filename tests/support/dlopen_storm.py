"""A program that loads SQLite and goes straight on loading other libraries, on two threads."""

import ctypes
import sqlite3
import threading

sqlite3.connect(":memory:").execute("select 1").fetchall()


def load() -> None:
    for name in ("libm.so.6", "librt.so.1", "libutil.so.1", "libanl.so.1", "libBrokenLocale.so.1", "libnsl.so.1") * 20:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue  # not on every system


threads = [threading.Thread(target=load) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
