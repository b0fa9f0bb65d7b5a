"""Which TLS settings belong together, and where plain text may be spoken."""

import ipaddress

UNIX = "unix:"
"""What the address of a unix socket begins with; nobody beyond this machine reaches one."""


def is_loopback_host(host: str) -> bool:
    """Whether only this machine is meant by a host, or by the address of a unix socket.

    A name other than localhost is none of this machine's, whatever it means today.
    """
    if host == "localhost" or host.startswith(UNIX):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT or unix:PATH names this machine."""
    return is_loopback_host(address if address.startswith(UNIX) else address.rpartition(":")[0])


def check_together(**settings: object) -> None:
    """Raises ValueError when some of the settings are given and some are not."""
    missing = [name for name, value in settings.items() if value is None]
    if missing and len(missing) < len(settings):
        raise ValueError(f"{' and '.join(settings)} belong together: {' and '.join(missing)} is not set")


def check_needs(needed: str, value: object, **settings: object) -> None:
    """Raises ValueError when one of the settings is given and the needed one is not."""
    for name, given in settings.items():
        if given is not None and value is None:
            raise ValueError(f"{name} is set, which takes TLS: {needed} is not set")


def check_plaintext(what: str, remedy: str, permission: str, *, is_allowed: bool) -> None:
    """Raises ValueError unless plain text is allowed.

    Args:
        what: the setting and its value that would speak plain text beyond this machine.
        remedy: the settings that turn TLS on.
        permission: the setting that allows plain text.
        is_allowed: its value, or whether the question does not arise.
    """
    if not is_allowed:
        raise ValueError(
            f"{what} would speak plain text beyond this machine; set {remedy} (`specedge certs` makes certificates to "
            f"try it with), or {permission}: true where nobody else can listen"
        )
