"""The system calls that a sandboxed process may not make: a seccomp filter, made by libseccomp.

Namespaces hide files, processes and networks, but the kernel's own code stays within reach. The
filter closes what namespaces leave open: the user's keyrings, sockets of virtual machines, memory
that no limit counts. It also closes what local exploits often used and neither User-Mode Linux nor
its network helper needs. It lists what is refused, not what is allowed: the calls that two kernels
and a C library need change from release to release.

libseccomp (https://github.com/seccomp/libseccomp) is called through ctypes: its own Python binding
is not on PyPI. It knows the numbers of system calls, and adds the tests of the architecture that a
filter must not forget (x32, i386).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from functools import cache

from p2pcloop.errors import GuestError
from p2pcloop.shared_library import load_library
from p2pcloop.words import tr

_LIBRARY = "libseccomp.so.2"

# seccomp.h of libseccomp
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_ATTRIBUTE_BAD_ARCHITECTURE = 2
_COMPARE_EQUAL, _COMPARE_GREATER, _COMPARE_MASKED_EQUAL = 4, 6, 7

_NEW_NAMESPACES = (
    0x00020000,  # CLONE_NEWNS
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
)

_REFUSED = (
    # Keyrings belong to a user, in all namespaces.
    *("add_key", "keyctl", "request_key"),
    # Memory that belongs to no process and to no tmpfs of limited size.
    *("memfd_create", "memfd_secret", "mq_open", "msgget", "semget", "shmget"),
    # Another sandbox in the sandbox, or a way out by file handles.
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "move_mount", "open_tree", "mount_setattr", "open_by_handle_at"),
    *("name_to_handle_at", "fanotify_init"),
    # Large parts of the kernel that no guest needs.
    *("bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open"),
    *("userfaultfd", "kcmp", "lookup_dcookie", "vmsplice"),
    # They change the machine; without capabilities the kernel refuses them anyway.
    *("acct", "delete_module", "finit_module", "init_module", "ioperm", "iopl", "kexec_load"),
    *("kexec_file_load", "quotactl", "reboot", "settimeofday", "clock_settime", "swapon"),
    *("swapoff", "syslog", "vhangup"),
)


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp: argument `number`, compared with one or two values."""

    _fields_ = [
        ("number", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


@cache
def build(*families: socket.AddressFamily) -> bytes:
    """Return the program, as `bwrap --seccomp` takes it.

    Args:
        families: the only address families of which sockets can be made.

    Raises:
        NeedsPackageError: libseccomp is not installed.
        GuestError: libseccomp refuses a rule.
    """
    library = _library()
    context = library.seccomp_init(_ALLOW)
    if not context:
        raise GuestError("libseccomp makes no filter for this machine")
    try:
        # A 64-bit guest's 32-bit system call must not end the guest: UML answers it.
        _check(
            library.seccomp_attr_set(context, _ATTRIBUTE_BAD_ARCHITECTURE, _refuse(errno.ENOSYS))
        )
        for name in _REFUSED:
            _add(context, name, errno.EPERM)
        # Its flags lie in memory, where no filter sees them; C libraries fall back to clone.
        _add(context, "clone3", errno.ENOSYS)
        for flag in _NEW_NAMESPACES:
            new = _Comparison(0, _COMPARE_MASKED_EQUAL, flag, flag)
            _add(context, "clone", errno.EPERM, new)
        # AF_VSOCK knows no network namespace; nor do abstract AF_UNIX ones where that is shared.
        last = max(families)
        others = [_Comparison(0, _COMPARE_EQUAL, n, 0) for n in range(last) if n not in families]
        for other in (*others, _Comparison(0, _COMPARE_GREATER, last, 0)):
            _add(context, "socket", errno.EAFNOSUPPORT, other)
        return _export(context)
    finally:
        library.seccomp_release(context)


def _refuse(code: int) -> int:
    return _ERRNO | code


def _add(context: int, name: str, code: int, *wanted: _Comparison) -> None:
    """Refuse a system call with an error code, where all of `wanted` hold."""
    library = _library()
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:  # this libseccomp does not know it, or this machine has no such system call
        return
    comparisons = (_Comparison * len(wanted))(*wanted)
    _check(library.seccomp_rule_add_array(context, _refuse(code), number, len(wanted), comparisons))


def _export(context: int) -> bytes:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as program:
        try:
            # Some kilobytes: a pipe holds 64.
            _check(_library().seccomp_export_bpf(context, write_end))
        finally:
            os.close(write_end)
        return program.read()


def _check(code: int) -> None:
    if code < 0:
        raise GuestError(tr("libseccomp makes no filter: {why}", why=os.strerror(-code)))


@cache
def _library() -> ctypes.CDLL:
    library = load_library(
        _LIBRARY,
        tr("the sandbox round a guest needs the library libseccomp"),
        tr("apt-get install libseccomp2"),
    )
    unsigned, pointer = ctypes.c_uint32, ctypes.c_void_p
    library.seccomp_init.argtypes, library.seccomp_init.restype = [unsigned], pointer
    library.seccomp_release.argtypes, library.seccomp_release.restype = [pointer], None
    library.seccomp_attr_set.argtypes = [pointer, ctypes.c_int, unsigned]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(pointer, unsigned, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [pointer, ctypes.c_int]
    return library
