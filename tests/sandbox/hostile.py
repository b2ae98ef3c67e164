"""Forty-two programs that mean harm: name, source, and the verdicts that say they were contained.

A program that prints ESCAPED got through to what it was after.
"""

from __future__ import annotations

from typing import NamedTuple


class Hostile(NamedTuple):
    """One program; `HOST` in it stands for a file of the host, `PORT` for a port where the host listens, `PID` for a process of it."""

    name: str
    program: str
    verdicts: tuple[str, ...]


FAILED, FINISHED, TIMEOUT, OUTPUT, KILLED = ("failed",), ("finished",), ("timeout",), ("output",), ("killed",)
QUIET = ("finished", "failed")
SLOW = (*QUIET, "timeout")

PROGRAMS = [
    # network
    Hostile("connect to the host", "import socket; socket.create_connection(('127.0.0.1', PORT), 1); print('ESCAPED')", FAILED),
    Hostile("connect out", "import socket; socket.create_connection(('1.1.1.1', 53), 1); print('ESCAPED')", FAILED),
    Hostile("resolve a name", "import socket; socket.getaddrinfo('example.com', 80); print('ESCAPED')", FAILED),
    Hostile("fetch a page", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT', timeout=1); print('ESCAPED')", FAILED),
    Hostile("virtual machine sockets", "import socket; socket.socket(40, socket.SOCK_STREAM); print('ESCAPED')", FAILED),
    Hostile("raw packets", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('ESCAPED')", FAILED),
    Hostile("a socket by its number", "import ctypes; assert ctypes.CDLL(None).syscall(41, 2, 1, 0) == -1; raise SystemExit(1)", FAILED),
    # files
    Hostile("read a file of the host", "print('ESCAPED', open('HOST').read())", FAILED),
    Hostile("overwrite a file of the host", "open('HOST', 'w').write('x'); print('ESCAPED')", FAILED),
    Hostile("delete a file of the host", "import os; os.remove('HOST'); print('ESCAPED')", FAILED),
    Hostile("read the passwords", "print('ESCAPED', open('/etc/shadow').read())", FAILED),
    Hostile("write into Python", "import os; open(os.__file__, 'a').write('#'); print('ESCAPED')", FAILED),
    Hostile("write into /usr", "open('/usr/bin/mine', 'w').write('x'); print('ESCAPED')", FAILED),
    Hostile("write into the root", "open('/mine', 'w').write('x'); print('ESCAPED')", FAILED),
    Hostile("delete everything", "import shutil\nfor d in ('/usr', '/lib', '/bin'): shutil.rmtree(d, ignore_errors=True)", SLOW),
    Hostile("climb out by a link", "import os; os.symlink('HOST', '/tmp/l'); print('ESCAPED', open('/tmp/l').read())", FAILED),
    Hostile("a device of the host", "import os; os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0)); print('ESCAPED')", FAILED),
    Hostile("change the root", "import os; os.chroot('/tmp'); print('ESCAPED')", FAILED),
    Hostile("one large file", "open('/tmp/f', 'wb').write(b'x' * 10**9); print('ESCAPED')", FAILED),
    Hostile("many files", "for i in range(400): open(f'/tmp/{i}', 'wb').write(b'x' * 2**20)\nprint('ESCAPED')", SLOW),
    Hostile("many open files", "k = [open('/dev/null') for _ in range(10**5)]; print('ESCAPED')", FAILED),
    # environment and processes
    Hostile("read the environment", "import os; assert not {'PATH', 'SECRET'} & os.environ.keys(); raise SystemExit(1)", FAILED),
    Hostile("processes of the host", "import os; open(f'/proc/PID/cmdline').read(); print('ESCAPED')", QUIET),
    Hostile("kill the host's process", "import os, signal; os.kill(PID, signal.SIGKILL); print('DONE')", QUIET),
    Hostile("kill everything", "import os, signal; os.kill(-1, signal.SIGKILL)", (*QUIET, "killed")),
    Hostile("kill the parent", "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.1)", (*QUIET, "killed")),
    Hostile("kill itself", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", KILLED),
    Hostile("stop itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", TIMEOUT),
    Hostile("fork bomb", "import os\nwhile True: os.fork()", FAILED),
    Hostile("fork bomb that hides errors", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", TIMEOUT),
    Hostile("threads without end", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()", TIMEOUT),
    Hostile("a daemon that outlives it", "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass", FAILED),
    Hostile("another program", "import subprocess; print('ESCAPED', subprocess.run(['/bin/ls', '/'], capture_output=True))", FAILED),
    Hostile("a new user namespace", "import ctypes, os; assert ctypes.CDLL(None).unshare(0x10000000) == -1; raise SystemExit(1)", FAILED),
    Hostile("trace the init process", "import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == -1; raise SystemExit(1)", FAILED),
    # memory and time
    Hostile("memory at once", "b = bytearray(8 * 2**30); print('ESCAPED')", FAILED),
    Hostile("memory bit by bit", "k = []\nwhile True: k.append('x' * 10**6)", SLOW),
    Hostile("memory outside the address space", "import os; f = os.memfd_create('m'); os.write(f, b'x' * 10**7); print('ESCAPED')", FAILED),
    Hostile("shared memory", "open('/dev/shm/m', 'wb').write(b'x' * 10**7); print('ESCAPED')", FAILED),
    Hostile("endless loop", "while True: pass", TIMEOUT),
    Hostile("endless loop deaf to signals", "import signal\nfor s in (1, 2, 15): signal.signal(s, 1)\nwhile True: pass", TIMEOUT),
    Hostile("endless sleep with its output closed", "import os, time\nos.close(1); os.close(2)\ntime.sleep(99)", TIMEOUT),
    Hostile(
        "recursion without end",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)",
        ("failed", "killed", "timeout"),
    ),
    Hostile("raise its own limits", "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1)); print('ESCAPED')", FAILED),
    # the kernel, and output
    Hostile("write to /proc/sys", "open('/proc/sys/kernel/hostname', 'w').write('mine'); print('ESCAPED')", FAILED),
    Hostile("press the kernel's keys", "open('/proc/sysrq-trigger', 'w').write('b'); print('ESCAPED')", FAILED),
    Hostile("spare itself from the kernel", "open('/proc/self/oom_score_adj', 'w').write('-1000'); print('ESCAPED')", FAILED),
    Hostile("read the kernel's memory", "print('ESCAPED', open('/proc/kcore', 'rb').read(64))", FAILED),
    Hostile("mount", "import ctypes; assert ctypes.CDLL(None).mount(b'proc', b'/tmp', b'proc', 0, 0) == -1; raise SystemExit(1)", FAILED),
    Hostile("flood of output", "while True: print('x' * 10**6)", OUTPUT),
    Hostile("flood of errors", "import sys\nwhile True: sys.stderr.write('x' * 10**6)", OUTPUT),
    Hostile("control characters", r"print('\x1b[2J\x07' * 100)", FINISHED),
]
