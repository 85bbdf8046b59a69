#!/bin/bash
# User-Mode Linux on a terminal: one of its processes survives a SIGKILL of its process group
#
# Package, version: user-mode-linux 6.1um4+b13 (kernel 6.1.176, Debian 12)
# What one would expect: a program that was started in a session and process group of its own is
#   gone once that group has got SIGKILL.
# What happens: for a console on a terminal UML starts a process that waits for changes of the
#   terminal's size. It makes a session of its own and takes the terminal for its controlling one.
#   The SIGKILL of the group does not reach it; it lives on until the terminal goes away.
# Output seen:
#   before: 3 processes in the group, 1 in a session of its own with the terminal
#   after SIGKILL of the group: 0 in the group, 1 in a session of its own
# Why it matters: supervisors that end what they started by its process group leave one process
#   for each boot, and the terminal belongs to it. Only a PID namespace or a cgroup ends all.
# Source: arch/um/drivers/chan_user.c, winch_thread and winch_tramp
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= user-mode-linux=6.1um4+b13 || exit 2
dpkg-deb -x ./*.deb root || exit 2
mkdir uml
cat > watch.py <<'EOF'
import os
import pty
import signal
import subprocess
import sys
import time

ours = f"uml_dir={os.getcwd()}/uml/"


def processes(leader):
    """The pids of this UML's processes within the leader's group, and of those outside of it."""
    inside, outside = [], []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline") as file:
                if ours not in file.read().split("\0"):
                    continue
            group = os.getpgid(int(name))
            with open(f"/proc/{name}/stat") as file:
                ended = file.read().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if not ended:
            (inside if group == leader else outside).append(int(name))
    return inside, outside


master, terminal = pty.openpty()
os.set_blocking(master, False)
uml = subprocess.Popen(
    ["root/usr/bin/linux.uml", "mem=64M", ours, "con0=fd:0,fd:1", "con=null", "root=/dev/none",
     "rootwait"],
    stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
)  # fmt: skip
os.close(terminal)
outside, output = [], b""
try:
    end = time.monotonic() + 60
    while not (b"Waiting for root device" in output and outside) and time.monotonic() < end:
        try:
            output += os.read(master, 65536)
        except BlockingIOError:
            time.sleep(0.1)
        inside, outside = processes(uml.pid)
    apart = [pid for pid in outside if os.getsid(pid) == pid]
    before = len(inside), len(apart)
    print(f"before: {before[0]} processes in the group,"
          f" {before[1]} in a session of its own with the terminal")
    os.killpg(uml.pid, signal.SIGKILL)
    uml.wait()
    time.sleep(3)
    inside, outside = processes(uml.pid)
    print(f"after SIGKILL of the group: {len(inside)} in the group,"
          f" {len(outside)} in a session of its own")
finally:
    if uml.poll() is None:
        os.killpg(uml.pid, signal.SIGKILL)
        uml.wait()
    for pid in processes(uml.pid)[1]:
        os.kill(pid, signal.SIGKILL)
    os.close(master)
sys.exit(not (before[1] == 1 and not inside and outside == apart))
EOF
timeout -s INT 120 python3 watch.py
