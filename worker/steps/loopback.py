"""Switches the loopback interface of a new network namespace on, and becomes the command in its arguments.

It is run by its path before anything of this project is imported: `python -I loopback.py COMMAND ...`. Processes of one
job reach each other over this interface; there is no other.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # netdevice(7)
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4  # prctl(2)

if __name__ == "__main__":
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # the worker's own command
