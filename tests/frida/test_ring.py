from __future__ import annotations

import mmap
import random
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqltrace.backends import ring as ring_module
from sqltrace.backends.frida.sources import agent_script, hooks_source
from sqltrace.backends.ring import EXECUTION, HEADER, HEADER_BYTES, LARGEST, SPILL, Geometry, Ring
from sqltrace.events.wire import INCOMPLETE, NESTED, NO_COUNTERS, End, Record, Text
from tests.support.ring_writer import RingWriter, statement, text


def seen(records: list[Record]) -> list[object]:
    """Row counts of statements and the bytes of texts, in order."""
    found: list[object] = []
    for record in records:
        if isinstance(record, np.ndarray):
            found += record["rows"].tolist()
        elif isinstance(record, Text):
            found.append(record.data)
    return found


def test_records_come_back_in_order_over_many_laps() -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    random.seed(1)
    sent: list[object] = []
    got: list[object] = []
    for number in range(3000):
        if random.random() < 0.2:
            data = random.randbytes(random.randrange(900))
            record, what = text(number, data), data
        else:
            record, what = statement(number), number
        while not writer.write(record):
            got += seen(ring.read())
        sent.append(what)
    while records := ring.read():
        got += seen(records)
    assert got == sent
    assert ring.lost() == {}
    assert ring.empty


def test_a_run_of_statements_is_one_batch_also_over_the_end_of_the_ring() -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    writer.write(text(0, b"x"))
    writer.write(text(0, b"x" * 100))
    ring.read()
    for number in range(31):
        assert writer.write(statement(number))
    batches = ring.read()
    assert seen(batches) == list(range(31))
    assert len(batches) == 2  # the second begins where the ring does
    assert all(batch.base is None or batch.flags.owndata or batch.base.flags.owndata for batch in batches)  # type: ignore[union-attr]


def test_a_full_ring_takes_nothing_more_until_it_is_read() -> None:
    writer = RingWriter(16)
    ring = Ring(writer.fd, writer.geometry)
    assert [writer.write(statement(i)) for i in range(9)] == [True] * 8 + [False]
    assert seen(ring.read()) == list(range(8))
    assert writer.write(statement(9))


def test_a_record_that_its_dead_writer_never_published_is_passed_over() -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    writer.write(statement(1))
    writer.reserve(700)
    writer.write(statement(2))
    writer.reserve(128)
    assert seen(ring.read()) == [1]
    assert ring.read() == []
    assert seen(ring.read(dead=True)) == [2]
    assert ring.empty
    assert ring.lost() == {("record", "torn"): 2}


def test_a_slow_writer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    now = 100.0
    monkeypatch.setattr(ring_module.time, "monotonic", lambda: now)
    position = writer.reserve(128)
    assert position is not None
    writer.write(statement(2))
    assert ring.read() == []
    now += 0.9
    assert ring.read() == []
    writer.fill(position, statement(1))
    writer.publish(position)
    assert seen(ring.read()) == [1, 2]
    assert ring.lost() == {}


def test_a_writer_that_stays_silent_is_given_up_but_not_while_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    now = 100.0
    monkeypatch.setattr(ring_module.time, "monotonic", lambda: now)
    writer.reserve(128)
    writer.write(statement(2))
    for _ in range(5):
        now += 2
        assert ring.read(stopped=True) == []
    now += 1.1
    assert seen(ring.read()) == [2]
    assert ring.lost() == {("record", "torn"): 1}


@pytest.mark.parametrize("size", [0, 7, LARGEST + 1, 0xFFFFFFFF, 64 * 60])
@pytest.mark.parametrize("kind", [1, 2, 3, 77])
def test_a_forged_size_is_counted_and_passed_over(kind: int, size: int) -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    position = writer.reserve(64)
    assert position is not None
    writer.fill(position, struct.pack("<HHI", kind, 0, size))
    writer.publish(position)
    writer.write(statement(5))
    assert seen(ring.read()) == [5]
    assert ring.lost() == {("record", "malformed"): 1}


@pytest.mark.parametrize("head", [1 << 63, (1 << 64) - 1, 67, 1 << 40])
def test_a_forged_head_does_not_stop_the_reader(head: int) -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    writer.write(statement(1))
    ring.read()
    writer.header["head"] = head
    ring.read()
    assert ring.lost() == {("record", "malformed"): 1}
    assert writer.write(statement(2))
    assert seen(ring.read()) == [2]


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=4096), st.integers(0, 200), st.randoms(use_true_random=False))
def test_garbage_never_hangs_or_crashes_the_reader(garbage: bytes, head: int, chance: random.Random) -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    writer.memory[writer.geometry.payload : writer.geometry.payload + len(garbage)] = garbage
    writer.header["head"] = head
    for position in range(min(head, 64)):
        if chance.random() < 0.7:
            writer.publish(position)
    for _ in range(100):
        if not ring.read(dead=True):
            break
    assert ring.empty


def test_executions_that_did_not_end_are_told_once_for_each_process() -> None:
    writer = RingWriter(64, executions=8)
    ring = Ring(writer.fd, writer.geometry)
    table = np.frombuffer(writer.memory, EXECUTION, 8, writer.geometry.table)
    for index, (pid, running) in enumerate([(5, 1), (5, 0), (6, 1)]):
        table[index] = np.zeros((), EXECUTION)
        table["key"][index], table["pid"][index], table["running"][index] = 10 + index, pid, running
        table["rows"][index], table["flags"][index], table["stmt"][index] = 3 + index, NESTED | End.DONE, 99
    rows = ring.unfinished(End.EXIT, 5)
    assert rows["rows"].tolist() == [3]
    assert rows["flags"].tolist() == [NESTED | INCOMPLETE | NO_COUNTERS | End.EXIT]
    assert rows["rc"].tolist() == [100]
    assert len(ring.unfinished(End.EXIT, 5)) == 0
    assert ring.unfinished(End.DETACH)["pid"].tolist() == [6]


def test_totals_survive_closing() -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    writer.header["hits"] = 12
    lost = writer.header["lost"][0]
    lost[0] = 2
    ring.close()
    ring.close()
    assert ring.hits() == 12
    assert ring.lost() == {("statement", "ring_full"): 2}
    assert writer.header["closed"][0] == 1


def test_signs_of_life_are_given_until_the_ring_is_given_back() -> None:
    writer = RingWriter(64)
    ring = Ring(writer.fd, writer.geometry)
    assert writer.header["waits"][0] == 0
    ring.beat()
    ring.beat()
    assert writer.header["waits"][0] == 1
    assert writer.header["beat"][0] == 2
    ring.close()
    ring.beat()
    assert writer.header["beat"][0] == 2


def test_a_file_that_is_too_small_is_no_ring() -> None:
    writer = RingWriter(64)
    with pytest.raises(ValueError, match="cannot be a ring"):
        Ring(writer.fd, Geometry(128, 16))


def test_the_agent_gives_the_hooks_as_much_memory_as_they_use(tmp_path: Path) -> None:
    source = hooks_source()
    program = tmp_path / "sizes"
    program.with_suffix(".c").write_text(
        "#include <stdio.h>\n#include <stddef.h>\n"
        + source[source.index("typedef unsigned char u8;") : source.index("extern struct module module;")]
        + "int main(void) {"
        'printf("%zu %zu", sizeof(struct private), offsetof(struct module, step)); return 0; }'
    )
    subprocess.run(["gcc", "-o", program, program.with_suffix(".c")], check=True)
    private, layout = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    given = dict(re.findall(r"^const (\w+_BYTES) = (\d+);", agent_script(), re.MULTILINE))
    # Once it was 64 bytes short, which lay in the ring's header: one thread in 256 wrote there.
    assert int(private) <= int(given["PRIVATE_BYTES"])
    assert int(given["PRIVATE_BYTES"]) % mmap.PAGESIZE == 0
    assert int(layout) == int(given["LAYOUT_BYTES"])
    assert EXECUTION.itemsize == int(given["EXECUTION_BYTES"])


def test_the_header_file_and_the_reader_agree(tmp_path: Path) -> None:
    members = {"ring_header": HEADER, "execution": EXECUTION}
    lines = ["#include <stdio.h>", "#include <stddef.h>"]
    source = hooks_source()
    lines += [
        source[source.index("typedef unsigned char u8;") : source.index("#define SQLITE_ROW")],
        "int main(void) {",
    ]
    wanted = []
    for struct_name, dtype in members.items():
        assert dtype.names
        for name in dtype.names:
            lines.append(f'printf("%zu\\n", offsetof(struct {struct_name}, {name}));')
            wanted.append(dtype.fields[name][1])  # type: ignore[index]
    lines.append('printf("%zu\\n%d\\n%d\\n", sizeof(struct execution), RING_HEADER, RING_SPILL); return 0; }')
    wanted += [EXECUTION.itemsize, HEADER_BYTES, SPILL]
    program = tmp_path / "offsets"
    program.with_suffix(".c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", program, program.with_suffix(".c")], check=True)
    out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in out.split()] == wanted
