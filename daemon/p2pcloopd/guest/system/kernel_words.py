"""Words of the kernel's command line that make a guest boot sooner (docs/guest.md, "Kernels").

A kernel of Debian's makes things at each boot that a guest does not use, and that take as long as
all the rest. Each is left out where the kernel has it, and a word of ours gives it back.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcloop.frozen import dataclass
from p2pcloopd.guest.system.kernel import Kernel

FIRST_WITH_SECCOMP = (6, 16)
"""The first kernel version that can run a guest's processes under seccomp instead of ptrace."""

_MODULE_BLACKLIST = "module_blacklist="


@dataclass(frozen=True, slots=True)
class Omission:
    """Something that a guest's kernel leaves out.

    Attributes:
        undo: the word that gives it back.
        options: the options of the kernel's configuration that make it, without `CONFIG_`.
        words: what leaves it out.
        modules: the modules that must not be inserted without it.
    """

    undo: str
    options: frozenset[str]
    words: tuple[str, ...]
    modules: tuple[str, ...] = ()


LEGACY_PTYS = Omission("p2pcloop.legacy_ptys", frozenset({"LEGACY_PTYS"}), ("pty.legacy_count=0",))
"""The BSD pseudo terminals /dev/ptyXX and /dev/ttyXX, 512 devices, each of which the guest's udev
looks at. Programs use those of /dev/pts, which have nothing to do with them."""

RAID6 = Omission(
    "p2pcloop.raid6",
    frozenset({"RAID6_PQ", "RAID6_PQ_BENCHMARK"}),
    # The function that measures the routines of RAID 6 also chooses one (lib/raid6/algos.c; from
    # 7.2 on lib/raid/raid6/algos.c). The first name is 7.2's, the other that of kernels before.
    ("initcall_blacklist=raid6_init,raid6_select_algo",),
    # RAID 4, 5 and 6 of md are one module. Without a routine of RAID 6 its writes are a panic.
    ("raid456",),
)
"""RAID 6: 170 ms for each of five routines that the kernel measures in busy loops. No option of the
kernel's command line skips the measurement alone."""

SERIAL_LINES = Omission(
    "p2pcloop.serial_lines", frozenset({"SSL"}), ("initcall_blacklist=ssl_init",)
)
"""UML's serial lines /dev/ttyS0 to ttyS63, each of which the guest's udev and systemd look at. In
the sandbox they lead nowhere: to open one is an error."""

PC_WORDS = ("net.ifnames=0", "init_on_free=1", "cryptomgr.notests", "no_timer_check")
"""For a kernel on QEMU. The first root has given the network cards their addresses, and udev would
give them other names. Memory that is freed becomes zeros: so a state of the guest holds nothing
that its programs have given up (docs/formats/state.md, "Sizes"). The kernel tries its ciphers at no
boot: without KVM, that is a seventh of it. It does not try its timer either: without KVM it comes
late on a busy machine, and the kernel would panic; with KVM the kernel does not try it anyway."""

OMISSIONS = (LEGACY_PTYS, SERIAL_LINES, RAID6)


def kernel_words(kernel: Kernel, given: Sequence[str] = ()) -> list[str]:
    """Return all words of a guest's kernel that are there for speed, and those that are given.

    Args:
        kernel: it gets words only for what it has.
        given: the words of the publisher, the command and the user, in this order. They come last:
            of a parameter that is given twice the kernel takes the last one. What follows a `--` is
            for init.
    """
    if kernel.kind == "pc":
        return [*PC_WORDS, *given]
    end = given.index("--") if "--" in given else len(given)
    theirs, for_init = list(given[:end]), given[end:]
    left_out = [
        one for one in OMISSIONS if one.options <= kernel.options and one.undo not in theirs
    ]
    words = [word for one in left_out for word in one.words]
    if modules := [module for one in left_out for module in one.modules]:
        # Of two lists the last one alone would count.
        lists = [word for word in theirs if word.startswith(_MODULE_BLACKLIST)]
        modules += [lists[-1].removeprefix(_MODULE_BLACKLIST)] if lists else []
        words.append(_MODULE_BLACKLIST + ",".join(modules))
        theirs = [word for word in theirs if word not in lists]
    if kernel.version >= FIRST_WITH_SECCOMP:
        # Without it the kernel uses ptrace. `auto` is ptrace, too, on a host without seccomp.
        words.append("seccomp=auto")
    return [*words, *theirs, *for_init]
