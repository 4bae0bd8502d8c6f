"""Confinement of child processes that parse untrusted data: Landlock and a seccomp filter.

A process that solves, resolves, converts or unpacks published packages calls `confine` before it
reads the first untrusted byte. From then on it and all its children

- open only the given files, the system's libraries and this Python: not the database, not
  `secrets/`, not the caches of other tenants;
- have no capability to bypass that (as root), and cannot get one (no_new_privs);
- cannot trace other processes or read their memory or environment (Landlock denies both for
  processes outside the same domain);
- cannot signal other processes or connect to abstract Unix sockets (Landlock ABI 6, Linux 6.12);
- cannot open any Unix socket, so reach neither the queue's nor the database's, and have no
  io_uring, which could bypass the seccomp filter (x86-64 and aarch64);
- cannot leave the process group, by which the parent kills them, and nor can their children;
- can connect to the given TCP ports only, if ports are given (Landlock ABI 4, Linux 6.7).

Still possible: UDP, listening on TCP ports, using processor and memory up to the limits of the
process, and `stat` of paths (not reading their contents). On kernels before 6.12 also signals to
processes of the same user.

This protects against faults in trusted code. Code of packages may be malicious and runs only in
bubblewrap (see `sandbox.py`).

The PyPI package `landlock` was considered: it is an alpha of May 2025 that supports ABI 5,
restricts neither TCP nor signals, and takes a stale errno for a failure. Three system calls are few
enough to make here. This module imports only the standard library: a parent may load it by its
path.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

#: The first ABI that does not break ordinary work: renames between folders (Linux 5.19).
MINIMUM_ABI = 2

# These numbers are the same on all Linux architectures that Python supports.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT = 1, 2
_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 14, 1 << 15, 1 << 16
#: Rights that a rule for a file, not a folder, may allow.
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV | _RESOLVE_UNIX
_CONNECT_TCP = 1 << 1
_SCOPES = 0b11  # abstract Unix sockets, signals

#: Capabilities that are kept, for folders of a user other than root: DAC_OVERRIDE, FOWNER.
_CAPABILITIES_LEFT = 1 << 1 | 1 << 3
_LAST_CAPABILITY = 63

#: Paths that programs of any kind read; none belongs to condastore or its users.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/opt/local"),
    *("/etc/alternatives", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/fonts"),
    *("/etc/gai.conf", "/etc/group", "/etc/host.conf", "/etc/hosts", "/etc/ld.so.cache"),
    *("/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/localtime"),
    *("/etc/mime.types", "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd"),
    *("/etc/pki/ca-trust", "/etc/pki/tls/cert.pem", "/etc/pki/tls/certs"),
    *("/etc/pki/tls/openssl.cnf", "/etc/protocols", "/etc/resolv.conf", "/etc/services"),
    *("/etc/ssl/cert.pem", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/terminfo"),
    *("/run/systemd/resolve", "/run/NetworkManager/resolv.conf", "/run/resolvconf"),
    *("/dev/random", "/dev/urandom", "/dev/zero"),
    *("/proc/cpuinfo", "/proc/filesystems", "/proc/meminfo", "/proc/stat", "/proc/sys/vm"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/fs/cgroup"),
)

#: Variables with the paths of certificates, which stay readable.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
#: Environment variables that a child may inherit. Excluded are secrets (CONDASTORE_*) and variables
#: that change how a program is loaded (LD_*, PYTHON*, GLIBC_TUNABLES).
INHERITED = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *_CERTIFICATES,
        *("RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS", "MALLOC_ARENA_MAX"),
        *("RUST_BACKTRACE", "RUST_LOG", "OMP_NUM_THREADS"),
    }
)


def child_environment(extra: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the complete environment of a child that parses untrusted data: an allow-list.

    Args:
        extra: additional variables that override inherited ones: proxies, HOME, PYTHONPATH.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith("LC_")
    }
    return inherited | dict(extra)


@functools.cache
def landlock_abi() -> int:
    """Return the ABI version of Landlock; 0 if the kernel has none or it is disabled."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(_syscall(_CREATE_RULESET, None, 0, 1), 0)


def can_confine() -> bool:
    """Return True if the kernel enforces the restrictions of `confine`."""
    return landlock_abi() >= MINIMUM_ABI


def confine(
    *,
    readable: Iterable[str | Path],
    writable: Iterable[str | Path],
    programs: Iterable[str | Path] = (),
    connect: Collection[int] | None = None,
) -> bool:
    """Confine this process and all its future children to the given files; irreversible.

    The system's files (`SYSTEM`) and this Python's stay readable. Open files stay open. Call it
    before a second thread starts: Landlock applies to the calling thread and what it starts.

    Args:
        readable: files and folders; missing ones are ignored.
        writable: folders in which files may be read, created, changed and removed. They must exist.
        programs: files and folders that may be read and executed.
        connect: TCP ports to which the process may connect; None for all.

    Returns:
        True if the kernel enforces it; False if it cannot, and then files are not restricted.

    Raises:
        OSError: a writable folder is missing, or the kernel denied a supported operation.
        RuntimeError: the process has several threads.
    """
    if _threads() > 1:
        raise RuntimeError("confine() must be called before the process starts threads.")
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    enforced = can_confine()
    if enforced:
        _restrict(readable, writable, programs, connect)
    _drop_capabilities()
    _filter_system_calls()
    return enforced


def python_paths() -> list[Path]:
    """Return the folders from which this Python imports.

    Of a project folder that is not a library (an editable install), only the packages that are
    already imported: the data folder may be in the same project.
    """
    found = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    found.add(os.path.dirname(os.path.realpath(sys.executable)))  # noqa: PTH120
    projects = []
    for entry in filter(None, sys.path):
        is_library = Path(entry).name in {"site-packages", "dist-packages", "lib-dynload"}
        if is_library or entry.endswith(".zip"):
            found.add(entry)
        elif not any(_is_below(entry, folder) for folder in tuple(found)):
            projects.append(entry)
    for module in tuple(sys.modules.values()):
        for folder in list(getattr(module, "__path__", ())):
            if any(str(Path(folder).parent) == entry for entry in projects):
                found.add(folder)
    return [Path(folder) for folder in sorted(found)]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return 1  # no /proc: trust the caller


def _restrict(
    readable: Iterable[str | Path],
    writable: Iterable[str | Path],
    programs: Iterable[str | Path],
    connect: Collection[int] | None,
) -> None:
    abi = landlock_abi()
    handled = (1 << 14) - 1  # all rights of ABI 2
    for since, right in ((3, _TRUNCATE), (5, _IOCTL_DEV), (9, _RESOLVE_UNIX)):
        if abi >= since:
            handled |= right
    ports = connect is not None and abi >= 4
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", _CONNECT_TCP if ports else 0)
    if abi >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _check(_syscall(_CREATE_RULESET, attributes, len(attributes), 0), "create_ruleset")
    try:
        allow = functools.partial(_allow, ruleset, handled)
        program = _READ_FILE | _READ_DIR | _EXECUTE
        for path in (*SYSTEM, *python_paths(), *programs):
            allow(path, program, missing_ok=True)
        allow(os.devnull, _READ_FILE | _WRITE_FILE, missing_ok=True)
        certificates = [os.environ[name] for name in _CERTIFICATES if os.environ.get(name)]
        for path in (*readable, *certificates):
            allow(path, _READ_FILE | _READ_DIR, missing_ok=True)
        for path in writable:
            allow(path, handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _EXECUTE | _IOCTL_DEV))
        for port in connect if ports and connect is not None else ():
            rule = struct.pack("=QQ", _CONNECT_TCP, port)
            _check(_syscall(_ADD_RULE, ruleset, _NET_PORT, rule, 0), "add_rule")
        _check(_syscall(_RESTRICT_SELF, ruleset, 0), "restrict_self")
    finally:
        os.close(ruleset)


def _allow(
    ruleset: int, handled: int, path: str | Path, rights: int, *, missing_ok: bool = False
) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if missing_ok:
            return
        raise
    try:
        if not os.path.isdir(path):  # noqa: PTH112
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights & handled, opened)
        _check(_syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "add_rule")
    finally:
        os.close(opened)


def _drop_capabilities() -> None:
    """Drop root's capabilities; other users have none."""
    for capability in range(_LAST_CAPABILITY + 1):
        if not _CAPABILITIES_LEFT >> capability & 1:
            _prctl(_PR_CAPBSET_DROP, capability)  # EPERM, EINVAL: nothing to drop
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if _libc().capget(header, data) != 0:
        return
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data.raw)
    left = _CAPABILITIES_LEFT
    if (effective | permitted) & ~left or effective_high | permitted_high:
        retained = struct.pack("=6I", effective & left, permitted & left, 0, 0, 0, 0)
        _check(_libc().capset(header, retained), "capset")


#: (audit architecture, number of socket, numbers of denied calls). Denied calls give access to
#: other processes or to kernel internals: ptrace, process_vm_readv, process_vm_writev, kcmp,
#: pidfd_getfd, keyctl, add_key, request_key, bpf, perf_event_open, userfaultfd, mount, umount2,
#: setns, open_by_handle_at, kexec_load, init_module, finit_module.
_SYSTEM_CALLS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        41,
        (101, 310, 311, 312, 438, 250, 248, 249, 321, 298, 323, 165, 166, 308, 304, 246, 175, 313),
    ),
    "aarch64": (
        0xC00000B7,
        198,
        (117, 270, 271, 272, 438, 219, 217, 218, 280, 241, 282, 40, 39, 268, 265, 104, 105, 273),
    ),
}
#: truncate by path, which Landlock restricts only since ABI 3; setpgid and setsid, with which a
#: process would leave the group that is killed at the end of its work.
_OF_CONFINED = {"x86_64": (76, 109, 112), "aarch64": (45, 154, 157)}
_IO_URING = (425, 426, 427)
#: AF_INET, AF_INET6 and AF_NETLINK, which the resolver uses to list this machine's addresses.
_FAMILIES = (2, 10, 16)


def sandbox_filter() -> bytes | None:
    """Return the seccomp filter for code of packages, in bubblewrap's format.

    It denies access to kernel internals, but no sockets: the sandbox has its own network. None on
    architectures whose system calls are not listed here.
    """
    known = _known_system_calls()
    return _program(known[0], refused=known[2], socket=None) if known else None


def _filter_system_calls() -> bool:
    """Install the filter of confined processes; return False if there is none."""
    known = _known_system_calls()
    if known is None:
        return False
    architecture, socket, refused = known
    refused = (*refused, *_OF_CONFINED[platform.machine()])
    program = _program(architecture, refused=refused, socket=socket)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    return _prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header)) == 0


def _known_system_calls() -> tuple[int, int, tuple[int, ...]] | None:
    if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32 or sys.byteorder != "little":
        return None
    return _SYSTEM_CALLS.get(platform.machine())


def _program(architecture: int, *, refused: Iterable[int], socket: int | None) -> bytes:
    """Return the filter as classic BPF: consecutive struct sock_filter.

    System calls of other architectures (and of x32) do not exist for the process. Sockets of
    families other than `_FAMILIES` are denied if the number of `socket` is given.
    """
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allowed = 0x7FFF0000

    def refuse(number: int) -> int:
        return 0x00050000 | number

    steps: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, architecture),
        (answer, 0, 0, refuse(errno.ENOSYS)),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, 0, 1, 0x40000000),
        (answer, 0, 0, refuse(errno.ENOSYS)),
    ]
    for numbers, error in ((_IO_URING, errno.ENOSYS), (refused, errno.EPERM)):
        for number in numbers:
            steps += [(equal, 0, 1, number), (answer, 0, 0, refuse(error))]
    if socket is not None:
        steps += [(equal, 1, 0, socket), (answer, 0, 0, allowed)]
        steps.append((load, 0, 0, 16))  # seccomp_data.args[0]: the family
        for family in _FAMILIES:
            steps += [(equal, 0, 1, family), (answer, 0, 0, allowed)]
        steps.append((answer, 0, 0, refuse(errno.EACCES)))
    steps.append((answer, 0, 0, allowed))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    """Return the result of a system call; -1 with errno set if it failed."""
    given = [each if isinstance(each, bytes | None) else ctypes.c_long(each) for each in arguments]  # type: ignore[arg-type]
    call = _libc().syscall
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(number), *given))


def _prctl(option: int, value: int, pointer: ctypes.c_char_p | None = None) -> int:
    zero = ctypes.c_ulong(0)
    return int(
        _libc().prctl(
            ctypes.c_int(option), ctypes.c_ulong(value), zero if pointer is None else pointer,
            zero, zero,
        )
    )  # fmt: skip


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
