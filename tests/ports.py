"""Ports for the tests' servers."""

import socket


def free_ports(count):
    """Free ports whose gRPC ports, 10,000 above them, are free too."""
    found = []
    while len(found) < count:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        port = port if port < 50000 else port - 20000
        try:
            for number in (port, port + 10000):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        found.append(port)
    return found
