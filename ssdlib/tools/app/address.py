"""Where a page is served: for this computer alone, or at an address that others reach."""

from __future__ import annotations

import socket
from ipaddress import ip_address


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this computer's own, which no other can reach."""
    name = name.lower().strip("[]").rstrip(".")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def own_address() -> str:
    """The address that this computer has in its network; its name where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address that is nobody's, and no packet is sent
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
