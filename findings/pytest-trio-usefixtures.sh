#!/bin/bash
# pytest-trio ignores autojump_clock where a test asks for it by usefixtures
#
# Package, version: pytest-trio 0.8.0 (pytest 9.2.0, trio 0.35.0)
# What one would expect: `@pytest.mark.usefixtures("autojump_clock")` is the same as an argument
#   `autojump_clock` that the test does not use.
# What happens: pytest makes the fixture, but pytest-trio looks for clocks among the arguments of
#   the test only. The test runs on the real clock and sleeps for real, and nothing says so.
# Output seen:
#   by mark: SystemClock
#   by argument: MockClock
# Why it matters: linters advise usefixtures for arguments that are not used. The test still
#   passes afterwards, only slower, and it now depends on real time.
# Source: pytest_trio/plugin.py, where the clock is chosen from the keyword arguments
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    pytest-trio==0.8.0 pytest==9.2.0 trio==0.35.0 || exit 2
mkdir "$work/tests"
printf '[pytest]\ntrio_mode = true\n' > "$work/tests/pytest.ini"
cat > "$work/tests/test_clock.py" <<'EOF'
import pytest
import trio


def note(how):
    with open("seen", "a") as file:
        print(f"{how}: {type(trio.lowlevel.current_clock()).__name__}", file=file)


@pytest.mark.usefixtures("autojump_clock")
async def test_by_mark():
    note("by mark")


async def test_by_argument(autojump_clock):
    note("by argument")
EOF
cd "$work/tests"
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider > "$work/log" || { cat "$work/log"; exit 1; }
cat seen
[ "$(cat seen)" = $'by mark: SystemClock\nby argument: MockClock' ]
