"""The few Linux calls behind the namespaces: new ones, entering them, TUN devices and their addresses.

They go to the kernel directly, so iproute2 is not needed.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TUN_DEVICE = "/dev/net/tun"
MTU = 1500

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PACKET_INFO = 0x1001
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_IFF_UP_RUNNING = 0x41
_NETMASK = "255.255.255.252"
_OWN_NAMESPACE = "/proc/thread-self/ns/net"


def leave_for_new(flags: int) -> None:
    """Moves this process into new namespaces.

    Raises:
        OSError: it may not, or the kernel has none.
    """
    _call("unshare", flags)


def become_owner_of_user_namespace() -> None:
    """Moves this process into a new user namespace, where it may make others; its user and group stay what they are.

    Raises:
        OSError: user namespaces are switched off, or all in use.
    """
    user, group = os.geteuid(), os.getegid()
    leave_for_new(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def open_own_namespace() -> int:
    """A descriptor of the network namespace that this thread is in; it keeps the namespace alive."""
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """For the block, this thread is in the network namespace; sockets made there stay there."""
    outside = open_own_namespace()
    try:
        _call("setns", namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", outside, CLONE_NEWNET)
    finally:
        os.close(outside)


def open_tun(name: str, address: str) -> int:
    """Makes a TUN device in this thread's namespace, sets both it and the loopback up; returns its descriptor.

    The device lives as long as the descriptor. Reading yields one IP packet, writing delivers one.

    Raises:
        OSError: /dev/net/tun is missing or may not be opened, or the namespace is not ours to configure.
    """
    device = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PACKET_INFO))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFADDR, _address_request(name, address))
            fcntl.ioctl(control, _SIOCSIFNETMASK, _address_request(name, _NETMASK))
            for interface in (name, "lo"):
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), _IFF_UP_RUNNING))
    except BaseException:
        os.close(device)
        raise
    return device


def _address_request(name: str, address: str) -> bytes:
    return struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
