"""IPv4 addresses of this machine's network interfaces, without torch (the metrics exporter imports this)."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915  # from linux/sockios.h


def ipv4_of_interface(interface: str) -> str:
    """Return the IPv4 address of an interface.

    Raises:
        OSError: the interface does not exist, or has no IPv4 address.
    """
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
