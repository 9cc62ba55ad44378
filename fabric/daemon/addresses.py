"""Addresses that a fabric listens on: `host:port`."""

import ipaddress


def moved(listen: str, port: int) -> str:
    """The same host, at another port."""
    return f"{listen.rpartition(':')[0]}:{port}"


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_everywhere(host: str) -> bool:
    """Whether it means all addresses of this machine, and so is none to connect to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
