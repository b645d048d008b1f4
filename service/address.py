"""The address on which the API listens: taken before anything else is started, or refused with a remedy."""

import errno
import socket

from service.domain.errors import CannotStart
from service.explain import describe_os_error

BACKLOG = 2048  # connections that wait while the API starts
REMEDIES = {
    errno.EADDRINUSE: "Stop the program that has this port, or choose another port (0 picks a free one).",
    errno.EADDRNOTAVAIL: "Choose an address of this machine.",
    errno.EACCES: "Choose a port from 1024 on.",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this address; port 0 picks a free port.

    Raises:
        CannotStart: The name has no address here, or the port is taken or not allowed.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a name"
        raise CannotStart(f"--host {host}: {reason}. Choose an address or a name of this machine.") from error
    family, _, _, _, address = addresses[0]
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotStart(describe_os_error(error, f"cannot listen on {host}, port {port}", REMEDIES)) from error


def url(listener: socket.socket) -> str:
    """The URL of what listens there."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
