#!/bin/bash
# A teacher offers an image. A pupil boots it, installs a package in it and publishes only what that
# changed. Another user boots the pupil's version and runs what was installed.
#     examples/pass-on-changes.sh IMAGE       (tools/build-image makes one, and prints its path)
# Three nodes on this machine; you need not type anything. Nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

# Each node keeps its state in a home of its own, and has its own p2pcloopd.
work=$(mktemp -d)
clean_up() {
    for node in teacher pupil reader; do
        p2pcloop stop --all --home "$work/$node" >/dev/null || true # if this script was killed
        p2pcloop daemon stop --home "$work/$node"
    done
    rm -rf "$work"
}
trap clean_up EXIT

say() {
    printf '\n== %s\n' "$*"
}

# One fact of a command's --json.
fact() {
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

say "the teacher offers $image"
seeded=$(p2pcloop seed "$image" --name class --home "$work/teacher" --json)
link=$(fact link <<<"$seeded")
echo "$(fact name <<<"$seeded"): $link"

say "the pupil boots it by that link, and installs a package; the overlay keeps the change"
p2pcloop run "$link" --overlay "$work/mine.delta" --home "$work/pupil" -- dpkg -i /root/hello.deb

say "the pupil publishes what changed"
published=$(p2pcloop publish "$work/mine.delta" --name homework -m "with hello-p2pcloop" \
    --home "$work/pupil" --json)
link=$(fact link <<<"$published")
echo "$(fact name <<<"$published"): $link"
p2pcloop log "$(fact name <<<"$published")" --home "$work/pupil"

say "another user boots the pupil's version by its link, and has the package"
p2pcloop run "$link" --home "$work/reader" --report "$work/report.json" -- hello-p2pcloop

python3 - "$work/report.json" <<'END'
import json, sys
told = json.load(open(sys.argv[1]))
print(f"\n{told['bytes_received']:,} bytes came, of an image of {told['image_stored']:,}:")
for peer, count in told["sources"].items():
    print(f"  {count:,} from {peer}")
END
