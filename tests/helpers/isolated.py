"""A process as on another machine: no network, and a user of whom the system knows the number alone (Linux).

`python isolated.py REPORT COMMAND…` runs a command so, and writes down how often something tried to leave the machine.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)
_SET_FLAGS, _UP = 0x8914, 0x1  # of a network interface
_UNKNOWN_USER = 12345


def isolated(command: Sequence[str], report: Path) -> list[str]:
    """The command that runs another one so."""
    return [sys.executable, "-I", __file__, str(report), *command]


def can_isolate() -> bool:
    """Whether this system lets its users do that."""
    return subprocess.run(isolated(["true"], Path(os.devnull)), capture_output=True).returncode == 0


def _leave() -> None:
    """Leave network and users behind: what remains is the loopback."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_UNKNOWN_USER} {user} 1"),
        ("gid_map", f"{_UNKNOWN_USER} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


def _refused() -> int:
    """How many packets had nowhere to go: to another machine, or to a name server on this one."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    counts = {
        f"{names[0]}{key}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for key, value in zip(names[1:], values[1:], strict=True)
    }
    return counts["Ip:OutNoRoutes"] + counts["Udp:NoPorts"]


if __name__ == "__main__":
    _leave()
    code = subprocess.run(sys.argv[2:]).returncode
    Path(sys.argv[1]).write_text(str(_refused()))
    sys.exit(code)
