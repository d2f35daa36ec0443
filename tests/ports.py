"""Ports for servers of the tests."""

import socket


def free_ports(count):
    """Ports that are free, and those of gRPC 10,000 above them."""
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
