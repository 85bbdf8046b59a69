"""What the guest's first root makes of the root that it hands over to: its shell functions, run by
busybox in a sandbox where that root is at /root. What they would mount or make is told instead."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcloopd.guest.system import initramfs, scripts
from p2pcloopd.guest.system.kernel import find_busybox

_BOUND = 120

_BEGIN = """
fail() {
    echo "cannot boot: $*"
    exit 7
}
mount() {
    echo "mount $*"
    # A tmpfs is empty.
    case $2 in tmpfs) rm -rf /root/run/* ;; esac
}
mknod() {
    echo "node $*"
}
init='' autologin='' TERM=linux mode=rw INTERFACE=none NAMESERVER=10.0.2.3
CONSOLE='4 1' SERIAL_CONSOLE=''
"""

Files = dict[str, str | bytes]
Tree = Callable[[Files], Path]


def run_functions(root: Path, script: str) -> list[str]:
    """Run a script behind the functions, with the applets of a first root; its output's lines."""
    parts = [scripts.script(name) for name in ("programs", "name-server", "network", "logins")]
    applets = root.parent / "bin"
    applets.mkdir(exist_ok=True)
    parts_of_a_boot = (initramfs._COMMON, initramfs.network_part(None), initramfs.HAND_OVER)
    for name in (applet for part in parts_of_a_boot for applet in part.applets):
        if not (applets / name).is_symlink():
            (applets / name).symlink_to("/busybox")
    done = subprocess.run(
        [
            *("bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--setenv", "PATH"),
            *("/bin", "--ro-bind", find_busybox(), "/busybox", "--ro-bind", applets, "/bin"),
            *("--bind", root, "/root", "--dev", "/dev", "/busybox", "sh", "-fc"),
            "".join((_BEGIN, *parts, script)),
        ],
        capture_output=True, text=True, timeout=_BOUND, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (0, 7)
    return done.stdout.splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a root: a path's text, or what it links to if it begins with `-> `."""

    def fill(files: Files) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.startswith("-> "):
                path.symlink_to(content.removeprefix("-> "))
                continue
            else:
                path.write_text(content)
            path.chmod(0o755)
        return root

    return fill


def elf(*, machine: int = 62, bits: int = 64, loader: str = "") -> bytes:
    """The head of an ELF executable (elf(5)) that asks for an interpreter, or for none."""
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    table = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 4096, 4096, 4096)
    name = loader.encode() + b"\0"
    if loader:
        table += struct.pack("<IIQQQQQQ", 3, 4, 64 + 112, 0, 0, len(name), len(name), 1)
    head = struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(table) // 56, 0, 0, 0
    )
    return ident + head + table + name


CHOOSE = 'choose_init\ncheck_program "$init" "$init"\necho "$init is $real"\n'
GOOD = elf()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"sbin/init": GOOD}, "/sbin/init is /sbin/init"),
        ({"bin/sh": GOOD}, "/bin/sh is /bin/sh"),
        (
            {"sbin": "-> /usr/sbin", "usr/sbin/init": "-> /lib/x/init", "lib": "-> usr/lib",
             "usr/lib/x/init": GOOD},
            "/sbin/init is /usr/lib/x/init",
        ),
        ({"sbin/init": "-> ../../../../bin/it", "bin/it": GOOD}, "/sbin/init is /bin/it"),
        ({"sbin/init": elf(loader="/lib64/ld.so"), "lib64": "-> /lib", "lib/ld.so": "x"},
         "/sbin/init is /lib/ld.so"),
        ({"sbin/init": "#! /bin/sh -e\n", "bin/sh": GOOD}, "/sbin/init is /bin/sh"),
        ({"sbin/init": "-> /a b|c", "a b|c": "-> d |e", "d |e": GOOD}, "/sbin/init is /d |e"),
    ],
)  # fmt: skip
def test_inits_that_start(tree: Tree, files: Files, said: str) -> None:
    assert run_functions(tree(files), CHOOSE) == [said]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "its root file system is empty"),
        ({"lost+found/x": ""}, "its root file system is empty"),
        ({"data": "x"}, "its root has no /sbin/init"),
        ({"@rootfs/etc/x": "", "@home/x": ""},
         ("its root has no /sbin/init, but a subvolume @rootfs:"
          " try --append rootflags=subvol=@rootfs")),
        ({"sbin/init": "-> /lib/systemd/systemd"},
         "/sbin/init leads to /lib/systemd/systemd, which its root does not have"),
        ({"sbin/init": "-> init"}, "the links of /sbin/init lead in a circle"),
        ({"sbin/init/x": ""}, "/sbin/init is no file"),
        ({"sbin/init": elf(bits=32, machine=3)},
         "/sbin/init is a 32-bit program, and this kernel runs 64-bit ones alone"),
        ({"sbin/init": elf(machine=183)}, "/sbin/init is a program for another kind of processor"),
        ({"sbin/init": elf(loader="/lib64/ld-linux-x86-64.so.2")},
         "/sbin/init needs /lib64/ld-linux-x86-64.so.2, which its root does not have"),
        ({"sbin/init": "#!/bin/bash\n"},
         "its root has no /bin/bash (which runs the script /sbin/init)"),
        ({"sbin/init": "#!/bin/bash\n", "bin/bash": elf(bits=32, machine=3)},
         ("/bin/bash (which runs the script /sbin/init) is a 32-bit program,"
          " and this kernel runs 64-bit ones alone")),
        ({"sbin/init": "echo hello\n"}, "/sbin/init is neither a program nor a script"),
        ({"sbin/init": ""}, "/sbin/init is neither a program nor a script"),
    ],
)  # fmt: skip
def test_inits_that_do_not_start(tree: Tree, files: Files, why: str) -> None:
    assert run_functions(tree(files), CHOOSE) == [f"cannot boot: {why}"]


def test_an_init_that_is_not_executable(tree: Tree) -> None:
    root = tree({"sbin/init": GOOD})
    (root / "sbin/init").chmod(0o644)
    assert run_functions(root, CHOOSE) == ["cannot boot: /sbin/init is not executable"]


def test_the_user_names_an_init(tree: Tree) -> None:
    root = tree({"sbin/init": GOOD, "bin/mine": GOOD})
    assert run_functions(root, f"init=/bin/mine\n{CHOOSE}") == ["/bin/mine is /bin/mine"]
    said = run_functions(root, f"init=/no/such\n{CHOOSE}")
    assert said == ["cannot boot: its root has no /no/such"]


LOGIN = """
choose_init
arrange_login
echo "$kind shows $onto"
"""
LOCKED: Files = {
    "bin/login": GOOD,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
    "etc/shadow": "root:*:1::::::\n",
}
OPEN: Files = {
    "bin/login": GOOD,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
    "etc/shadow": "root::1::::::\n",
}
TTY0 = "node /dev/tty0 c 4 1"
NO_TTY1 = "node /dev/tty1 c 4 15"


def inittab(*lines: str, init: bytes = GOOD) -> Files:
    return {
        **OPEN,
        "sbin/init": init,
        "etc/inittab": "id:2:initdefault:\n" + "\n".join(lines) + "\n",
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1:2345:respawn:/sbin/getty --noclear 38400 tty1"], ["inittab shows tty1"]),
        (["tty1::respawn:/sbin/getty 38400 tty1"], ["inittab shows tty1"]),
        (["1:2345:respawn:/sbin/getty 38400 console"], [NO_TTY1, "inittab shows console"]),
        (
            ["1:2345:respawn:/sbin/getty 38400 console", "2:23:respawn:/sbin/getty 38400 tty1"],
            [NO_TTY1, "inittab shows console"],
        ),
        (["::askfirst:-/bin/sh"], [NO_TTY1, "inittab shows console"]),
        (["tty0::respawn:-/etc/console"], [NO_TTY1, "inittab shows console"]),
        (
            ["T0:23:respawn:/sbin/getty -L /dev/ttyS0 9600 vt100"],
            ["node /dev/ttyS0 c 4 1", "inittab shows ttyS0"],
        ),
        (
            ["T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100", "1:23:respawn:/sbin/getty 3 tty1"],
            ["node /dev/ttyS0 c 4 15", "inittab shows tty1"],
        ),
        (["#1:2345:respawn:/sbin/getty 38400 tty1", "::respawn:/bin/crond"], ["inittab shows "]),
        (
            ["1:45:respawn:/sbin/getty 38400 tty1", "h:2:respawn:/sbin/getty 38400 hvc0"],
            ["node /dev/hvc0 c 4 1", "inittab shows hvc0"],
        ),
    ],
)
def test_the_login_of_an_inittab_is_shown(tree: Tree, lines: list[str], said: list[str]) -> None:
    assert run_functions(tree(inittab(*lines)), LOGIN) == [TTY0, *said]


def test_a_locked_root_is_told_where_a_password_is_asked_for(tree: Tree) -> None:
    root = tree(inittab("1:2345:respawn:/sbin/getty 38400 tty1") | LOCKED)
    locked = "p2pcloop: root is locked in this image"
    assert any(line.startswith(locked) for line in run_functions(root, LOGIN))
    shadow = root / "etc/shadow"
    for others in ("me:$y$j9T$x:1::::::\n", "me::1::::::\n"):
        shadow.write_text(f"root:!:1::::::\n{others}")
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nme:x:9:9::/:/bin/sh\n")
        assert run_functions(root, LOGIN) == [TTY0, "inittab shows tty1"]
    shadow.write_text("root:!$y$j9T$x:1::::::\nme:*:1::::::\n")
    assert any(line.startswith(locked) for line in run_functions(root, LOGIN))
    (root / "etc/inittab").write_text("1:2345:respawn:/sbin/getty --autologin root 38400 tty1\n")
    assert run_functions(root, LOGIN) == [TTY0, "inittab shows tty1"]


def test_autologin_by_an_inittab_of_this_boot(tree: Tree) -> None:
    line = "1:2345:respawn:/sbin/getty --noclear 38400 tty1"
    root = tree(inittab(line, "2:23:respawn:/sbin/getty 38400 tty2") | LOCKED)
    before = (root / "etc/inittab").read_text()
    said = run_functions(root, f"autologin=yes{LOGIN}cat /inittab\n")
    assert said[:3] == [TTY0, "mount --bind /inittab /root/etc/inittab", "inittab shows tty1"]
    assert said[3:] == [
        "p2pc::sysinit:/bin/umount /etc/inittab",
        "id:2:initdefault:",
        "1:2345:respawn:/sbin/getty --autologin root --noclear 38400 tty1",
        "2:23:respawn:/sbin/getty 38400 tty2",
    ]
    assert (root / "etc/inittab").read_text() == before


def test_autologin_where_getty_is_busybox(tree: Tree) -> None:
    lines = ("tty1::respawn:/sbin/getty 38400 tty1", "tty2::respawn:/sbin/getty 38400 tty2")
    root = tree(inittab(*lines) | {"bin/busybox": GOOD, "sbin/getty": "-> /bin/busybox"})
    said = run_functions(root, f"autologin=yes{LOGIN}cat /inittab\n")
    assert said[3] == "::sysinit:/bin/umount /etc/inittab"
    assert said[5:] == ["tty1::respawn:/bin/login -f root", lines[1]]


def test_a_root_without_a_login_gives_a_shell(tree: Tree) -> None:
    root = tree(inittab("1:2345:respawn:/sbin/getty 38400 tty1"))
    (root / "bin/login").unlink()
    assert "p2pcloop: this image has no program `login`" in run_functions(root, LOGIN)[1]
    assert "1:2345:respawn:/sbin/getty --skip-login --login-program /bin/sh 38400 tty1" in (
        run_functions(root, f"autologin=yes{LOGIN}cat /inittab\n")
    )


def test_autologin_that_is_of_no_avail_is_told(tree: Tree) -> None:
    said = run_functions(tree({"sbin/init": GOOD}), f"autologin=yes{LOGIN}")
    assert said[1].startswith("p2pcloop: --autologin has found no login to answer here")


UNITS = "etc/systemd/system"
WANTS = f"{UNITS}/getty.target.wants"
SYSTEMD: Files = {
    **OPEN,
    "sbin/init": "-> /lib/systemd/systemd",
    "lib": "-> usr/lib",
    "usr/lib/systemd/systemd": GOOD,
    "etc/machine-id": "",
    "run/x": "",
}
TTY1: Files = {f"{WANTS}/getty@tty1.service": "-> /lib/systemd/system/getty@.service"}
CONSOLE: Files = {f"{WANTS}/console-getty.service": "-> /lib/systemd/system/console-getty.service"}
SERIAL_UNITS: Files = {
    f"{UNITS}/{target}.target.wants/serial-getty@{line}.service": (
        "-> /lib/systemd/system/serial-getty@.service"
    )
    for target, line in (("getty", "ttyS0"), ("multi-user", "hvc0"))
}
"""Logins on lines that the sandbox does not have, as a guest does not."""

RUN = "mount -t tmpfs -o mode=755,nosuid,nodev,size=20%,nr_inodes=800k tmpfs /root/run"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (TTY1, [TTY0, "systemd shows tty1"]),
        (CONSOLE, [TTY0, "systemd shows console"]),
        (
            TTY1 | CONSOLE,
            [TTY0, RUN, "systemd shows console", "systemd/system/getty@tty1.service"],
        ),
        (
            TTY1 | CONSOLE | {f"{UNITS}/getty@tty1.service": "-> /dev/null"},
            [TTY0, "systemd shows console"],
        ),
        (
            {},
            [
                *(TTY0, RUN, "systemd shows console"),
                "systemd/system/getty.target.wants/console-getty.service",
            ],
        ),
        ({"etc/machine-id": "uninitialized\n"}, [TTY0, "systemd shows tty1"]),
        (
            TTY1 | SERIAL_UNITS,
            [
                *(TTY0, RUN, "systemd shows tty1"),
                "systemd/system/serial-getty@hvc0.service",
                "systemd/system/serial-getty@ttyS0.service",
            ],
        ),
    ],
)
def test_the_login_of_systemd_is_shown(tree: Tree, files: Files, said: list[str]) -> None:
    root = tree(SYSTEMD | files)
    assert run_functions(root, LOGIN) == said[: 3 if RUN in said else 2]
    made = sorted(
        str(path.relative_to(root / "run"))
        for path in (root / "run").rglob("*")
        if path.name != "x" and not path.is_dir()
    )
    assert made == said[3:]


def test_a_locked_root_is_told_above_the_prompt_of_systemd(tree: Tree) -> None:
    root = tree(SYSTEMD | TTY1 | LOCKED)
    assert run_functions(root, LOGIN) == [TTY0, RUN, "systemd shows tty1"]
    assert "root is locked" in (root / "run/p2pcloop/notice").read_text()
    drop_in = (root / "run/systemd/system/getty@tty1.service.d/zz-p2pcloop.conf").read_text()
    assert drop_in == "[Service]\nExecStartPre=-/bin/cat /run/p2pcloop/notice\n"


def test_systemd_gets_the_kind_of_terminal_and_the_answer(tree: Tree) -> None:
    root = tree(SYSTEMD | TTY1 | LOCKED)
    assert run_functions(root, f"TERM=xterm-256color autologin=yes{LOGIN}")[1] == RUN
    drop_in = (root / "run/systemd/system/getty@tty1.service.d/zz-p2pcloop.conf").read_text()
    assert drop_in.splitlines() == [
        "[Service]",
        "Environment=TERM=xterm-256color",
        "ExecStart=",
        "ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud tty1 115200 xterm-256color",
    ]


RUNIT: Files = {
    **OPEN,
    "sbin/init": "-> /lib/runit/runit-init",
    "lib/runit/runit-init": GOOD,
    "etc/service": "-> runit/runsvdir/default",
    "etc/runit/runsvdir/default/getty-tty1": "-> /etc/sv/getty-tty1",
    "etc/sv/getty-tty1/run": "#!/bin/sh\npgrep -x getty -t tty1\nexec chpst -P getty 38400 tty1\n",
}
SERIAL: Files = {
    "etc/runit/runsvdir/default/getty-ttyS0": "-> ../../../sv/getty-ttyS0",
    "etc/sv/getty-ttyS0/run": "#!/bin/sh\nkconsole=$(grep -o 'console=[^ ]*' /proc/cmdline)\n",
}


def test_the_one_login_of_runit_is_shown(tree: Tree) -> None:
    root = tree(RUNIT | SERIAL)
    idle = "mount --bind /idle /root/etc/sv/getty-ttyS0/run"
    assert run_functions(root, LOGIN) == [TTY0, idle, "runit shows tty1"]
    (root / "etc/runit/runsvdir/default/getty-tty1").unlink()
    assert run_functions(root, LOGIN) == [TTY0, "runit shows ttyS0"]


def test_autologin_of_runit(tree: Tree) -> None:
    said = run_functions(tree(RUNIT | LOCKED), f"autologin=yes{LOGIN}cat /changed-run\n")
    assert said[1:3] == [
        "mount --bind /changed-run /root/etc/sv/getty-tty1/run",
        "runit shows tty1",
    ]
    assert said[4:] == ["pgrep -x getty -t tty1", "exec chpst -P getty --autologin root 38400 tty1"]


OPENRC: Files = {
    **LOCKED,
    "sbin/init": "-> openrc-init",
    "sbin/openrc-init": GOOD,
    "etc/init.d/agetty": 'command_args_foreground="${agetty_options} ${port}"\n',
    "etc/init.d/agetty.tty1": "-> agetty",
    "etc/runlevels/default/agetty.tty1": "-> /etc/init.d/agetty.tty1",
}
FINIT: Files = {
    **LOCKED,
    "sbin/init": "-> finit",
    "sbin/finit": GOOD,
    "etc/finit.conf": "runlevel 2\n",
    "etc/finit.d/available/getty.conf": "tty [12] /dev/tty1 linux\ntty [2] /dev/tty2 linux\n",
    "etc/finit.d/getty.conf": "-> available/getty.conf",
}


@pytest.mark.parametrize(
    ("files", "kind", "changed", "line"),
    [
        (OPENRC, "openrc-init", "etc/init.d/agetty",
         'command_args_foreground="--autologin root ${agetty_options} ${port}"'),
        (FINIT, "finit", "etc/finit.d/available/getty.conf",
         "tty [12] /sbin/agetty --autologin root --noclear tty1 linux nowait"),
    ],
)  # fmt: skip
def test_the_logins_of_openrc_and_finit(
    tree: Tree, files: Files, kind: str, changed: str, line: str
) -> None:
    root = tree(files)
    asks = run_functions(root, LOGIN)
    assert any("root is locked" in said for said in asks)
    assert asks[-1] == f"{kind} shows tty1"
    name = Path(changed).name
    said = run_functions(root, f"autologin=yes{LOGIN}cat /changed-{name}\n")
    assert said[1:3] == [f"mount --bind /changed-{name} /root/{changed}", f"{kind} shows tty1"]
    assert said[3] == line


def test_the_serial_line_of_openrc_is_shown(tree: Tree) -> None:
    files = OPENRC | {"etc/runlevels/default/agetty.ttyS0": "-> /etc/init.d/agetty.tty1"}
    del files["etc/runlevels/default/agetty.tty1"]
    said = run_functions(tree(files | OPEN), LOGIN)
    assert said == [TTY0, "node /dev/ttyS0 c 4 1", "openrc-init shows ttyS0"]


def test_a_shell_in_the_place_of_an_init_is_left_alone(tree: Tree) -> None:
    root = tree(LOCKED | {"bin/sh": GOOD})
    assert run_functions(root, LOGIN) == [TTY0, " shows "]


GIVE = """
give_name_server
for file in /root/run/resolve/stub.conf /resolv.conf; do
    [ ! -e $file ] || cat $file
done
"""
OURS = "nameserver 10.0.2.3"
RESOLV = "/root/etc/resolv.conf"
RUN = "mount -t tmpfs -o mode=755,nosuid,nodev,size=20%,nr_inodes=800k tmpfs /root/run"


@pytest.mark.parametrize(
    ("files", "done"),
    [
        ({"etc/hosts": ""}, [f"mount --bind /resolv.conf {RESOLV}", OURS]),
        ({"etc/resolv.conf": ""}, [f"mount --bind /resolv.conf {RESOLV}", OURS]),
        (
            {"etc/resolv.conf": "# nameserver 9.9.9.9\nsearch lan\n"},
            [f"mount --bind /resolv.conf {RESOLV}", "# nameserver 9.9.9.9", "search lan", OURS],
        ),
        ({"etc/resolv.conf": "search lan\n nameserver 9.9.9.9\n"}, []),
        ({"etc": "-> ramdisk/etc", "ramdisk/etc/hosts": ""},
         ["mount --bind /resolv.conf /root/ramdisk/etc/resolv.conf", OURS]),
        # A resolver's: of systemd, say.
        ({"etc/resolv.conf": "-> ../run/resolve/stub.conf", "run/x": ""}, [RUN, OURS]),
        ({"etc/resolv.conf": "-> /var/run/resolve/stub.conf", "var/run": "-> /run", "run/x": ""},
         [RUN, OURS]),
        ({"etc/resolv.conf": "-> /lib/resolv.conf", "lib/resolv.conf": "nameserver ::1\n"}, []),
        # Nothing can be done, and nothing is.
        ({"bin/sh": ""}, []),
        ({"etc/resolv.conf": "-> ../run/resolve/stub.conf"}, []),
        ({"etc/resolv.conf": "-> resolv.conf"}, []),
        ({"etc/resolv.conf/x": ""}, []),
    ],
)  # fmt: skip
def test_the_name_server(tree: Tree, files: Files, done: list[str]) -> None:
    assert run_functions(tree(files), GIVE) == done


def test_no_name_server_for_a_root_that_cannot_be_written(tree: Tree) -> None:
    root = tree({"etc/hosts": ""})
    assert run_functions(root, "mode=ro\n" + GIVE) == []
    assert not (root / "etc/resolv.conf").exists()


def test_an_image_without_resolv_conf_gets_an_empty_one(tree: Tree) -> None:
    root = tree({"etc/hosts": ""})
    run_functions(root, GIVE)
    assert (root / "etc/resolv.conf").read_text() == ""


NAMED = 'hostname() { echo "hostname $*"; }\nNAME=web\n' + scripts.script("hostname")


@pytest.mark.parametrize("link", ["-> /lib/systemd/systemd", "-> ../lib/systemd/systemd"])
def test_systemd_is_told_its_name_by_the_kernel(tree: Tree, link: str) -> None:
    root = tree({"sbin/init": link, "lib/systemd/systemd": GOOD, "etc/hostname": "image\n"})
    assert run_functions(root, NAMED) == ["hostname web"]


def test_other_inits_read_their_name_in_a_file(tree: Tree) -> None:
    root = tree({"sbin/init": GOOD, "etc/hostname": "-> name", "etc/name": "image\n"})
    mounted = "mount --bind /hostname /root/etc/name"
    assert run_functions(root, NAMED + "cat /hostname\n") == ["hostname web", mounted, "web"]
    assert (root / "etc/name").read_text() == "image\n"
    (root / "etc/name").unlink()
    assert run_functions(root, NAMED) == ["hostname web"]


def test_the_login_on_a_serial_console_is_not_started_twice(tree: Tree) -> None:
    """Of the console in QEMU, which is a serial line, systemd would start a login of its own."""
    files = {"lib/systemd/systemd": GOOD, "run/x": "", **TTY1}
    root = tree(files | {"sbin/init": "-> /lib/systemd/systemd"})
    said = run_functions(
        root, "CONSOLE='4 64' SERIAL_CONSOLE=ttyS0 init=/sbin/init\narrange_login\n"
    )
    assert "node /dev/tty0 c 4 64" in said
    assert (root / "run/systemd/system/serial-getty@ttyS0.service").read_text() == ""
