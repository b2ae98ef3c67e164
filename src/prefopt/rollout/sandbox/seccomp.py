"""The system calls a sandboxed program may not make, as a filter program for the kernel (seccomp-bpf).

Namespaces hide the host; this closes what they leave: new processes (a limit on their number does not bind root), sockets (vsock
passes network namespaces), memory outside the address space limit (memfd, System V), and calls with a history of holes.
"""

from __future__ import annotations

import platform
import struct

from prefopt.errors import RewardError

# name: number on x86_64, number on aarch64 (None where there is none); from the kernel's syscall tables.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "personality": (135, 92),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
}
CLONE = (56, 220)
CLONE3 = (435, 435)
CLONE_THREAD = 0x10000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16


def filter_program(machine: str | None = None) -> bytes:
    """The filter for this machine.

    Raises:
        RewardError: system call numbers of its architecture are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise RewardError(
            f"the sandbox knows no system calls of {machine}", where="reward.verifier: code", fix=f"run code rewards on {known}"
        )
    column = list(ARCHITECTURES).index(machine)
    steps = [_step(LOAD, ARCHITECTURE), _step(EQUAL, ARCHITECTURES[machine], 1, 0), _step(RETURN, KILL), _step(LOAD, NUMBER)]
    if machine == "x86_64":
        steps += [_step(AT_LEAST, X32, 0, 1), _step(RETURN, KILL)]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            steps += [_step(EQUAL, number, 0, 1), _step(RETURN, ERRNO | EPERM)]
    # glibc takes ENOSYS as "use clone", whose flags a filter can read: threads are allowed, processes are not.
    steps += [_step(EQUAL, CLONE3[column], 0, 1), _step(RETURN, ERRNO | ENOSYS)]
    steps += [_step(EQUAL, CLONE[column], 0, 3), _step(LOAD, FIRST_ARGUMENT), _step(ANY_BIT, CLONE_THREAD, 1, 0)]
    steps += [_step(RETURN, ERRNO | EPERM), _step(RETURN, ALLOW)]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the jumps skip that many instructions."""
    return struct.pack("HBBI", code, if_true, if_false, value)
