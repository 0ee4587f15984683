"""The address and the ports of a dev cluster.

Rules: ports are free when they are chosen, and lie below the range from which the kernel takes
ports for outgoing connections, so nobody gets one by chance while a node is down.
"""

import random
import socket

from cluster.layout import DevClusterError

PORTS = range(12_000, 32_000)
ATTEMPTS_PER_PORT = 50


def loopback_address() -> str | None:
    """Find the loopback address of this machine's name; None when the name has another address.

    Slurm's daemons listen either on the address of the machine's name or on every interface.

    Raises:
        DevClusterError: The name has no address; slurmctld would die of it after ten seconds.
    """
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise DevClusterError(
            f"this machine's name {name} has no address: add '127.0.0.1 {name}' to /etc/hosts"
        ) from error
    return address if address.startswith("127.") else None


def free_ports(count: int, address: str) -> list[int]:
    """Choose different ports on which nothing listens."""
    chosen: list[int] = []
    for port in random.sample(PORTS, ATTEMPTS_PER_PORT * count):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise DevClusterError(f"found no {count} free ports in {PORTS.start} to {PORTS.stop}")
