"""The listening socket, taken before anything else is built."""

import errno
import socket

from zimage_studio.errors import UserError

EXIT_PORT_TAKEN = 98


class PortTakenError(UserError):
    """The address cannot be listened on; `exit_status` is what the process ends with."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        taken = error.errno == errno.EADDRINUSE
        super().__init__("port_taken" if taken else "cannot_listen", host=host, value=port, why=error.strerror)
        self.exit_status = EXIT_PORT_TAKEN if taken else 1


def listen(host: str, port: int) -> socket.socket:
    """A socket on exactly this port. Raises PortTakenError; never takes another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        raise PortTakenError(host, port, error) from error
    return sock
