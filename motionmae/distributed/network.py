"""Addresses of this machine's network interfaces. No torch here: the exporter asks as well."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915
"""linux/sockios.h."""


def ipv4_of_interface(interface: str) -> str:
    """The IPv4 address of an interface.

    Raises:
        OSError: if there is no such interface, or it has none.
    """
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
