"""Offsets in the running kernel's structs, from the type information that it carries in /sys/kernel/btf/vmlinux.

The fork and exit tracepoints hand a `struct task_struct *` to our programs, and no kernel headers are needed to
read its `pid` and `tgid`: BTF says where they are.
Format: Documentation/bpf/btf.rst in the kernel's source.  Only what is needed is read: the struct's name is looked
up in the string section, then its definition in the type section, without walking the 150,000 types before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sqltrace.errors import BackendUnavailableError

VMLINUX = "/sys/kernel/btf/vmlinux"
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_MAGIC = 0xEB9F
_KIND_STRUCT = 4


def member_offsets(struct_name: str, members: Sequence[str], btf: bytes) -> dict[str, int]:
    """Return the byte offset of each direct member of a struct.

    Raises ValueError when `btf` is not BTF or the struct or a member is not in it.
    """
    if len(btf) < _HEADER.size:
        raise ValueError("BTF is shorter than its header")
    magic, _, _, header, type_at, type_size, string_at, string_size = _HEADER.unpack_from(btf)
    if magic != _MAGIC or header + string_at + string_size > len(btf) or header + type_at + type_size > len(btf):
        raise ValueError("this is not BTF, or it is cut short")
    strings = btf[header + string_at : header + string_at + string_size]
    types = btf[header + type_at : header + type_at + type_size]
    at = strings.find(b"\0" + struct_name.encode() + b"\0")
    if at < 0:
        raise ValueError(f"BTF has no name {struct_name}")
    wanted = struct.pack("<I", at + 1)
    position = types.find(wanted)
    while position >= 0:
        if position % 4 == 0 and position + _TYPE.size <= len(types):
            _, info, _ = _TYPE.unpack_from(types, position)
            count = info & 0xFFFF
            if info >> 24 & 0x1F == _KIND_STRUCT and count:
                found = _members(types, position + _TYPE.size, count, bool(info >> 31), strings)
                if all(m in found for m in members):
                    return {m: found[m] for m in members}
        position = types.find(wanted, position + 1)
    raise ValueError(f"BTF does not define {struct_name} with {', '.join(members)}")


def _members(types: bytes, at: int, count: int, has_bitfields: bool, strings: bytes) -> dict[str, int]:
    found: dict[str, int] = {}
    for index in range(count):
        place = at + index * _MEMBER.size
        if place + _MEMBER.size > len(types):
            return {}
        name, _, bits = _MEMBER.unpack_from(types, place)
        end = strings.find(b"\0", name) if name < len(strings) else -1
        if end < 0:
            return {}
        if has_bitfields:
            bits &= 0xFFFFFF
        if bits % 8 == 0:
            found[strings[name:end].decode("utf-8", "replace")] = bits // 8
    return found


_NEEDED: dict[str, tuple[str, ...]] = {
    "task_struct": ("pid", "tgid", "exit_code"),
    "linux_binprm": ("file",),
    "file": ("f_inode",),
    "inode": ("i_ino",),
}


def kernel_offsets() -> dict[tuple[str, str], int]:
    """Return where (struct, member) lie in the running kernel, for all that bpf/follow.c reads."""
    try:
        with open(VMLINUX, "rb") as stream:
            data = stream.read()
        return {
            (struct_name, member): offset
            for struct_name, members in _NEEDED.items()
            for member, offset in member_offsets(struct_name, members, data).items()
        }
    except (OSError, ValueError) as error:
        raise BackendUnavailableError(
            f"the kernel's type information in {VMLINUX} cannot be used ({error}). Use --backend frida."
        ) from error
