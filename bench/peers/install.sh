#!/usr/bin/env bash
# Installs the peers of bench.peers, each as far as it can be had here; what can't is said, and the rest goes on.
#
#   bash bench/peers/install.sh          as root, or with sudo; needs Debian's packages and a network
#
# Debian: gopacket, libnids, tcpflow, tshark. An environment of their own: scapy, dpkt, pktcap. The programs that drive gopacket and libnids are
# built here. All that is not a Debian package goes to TCPREASM_PEERS, or else to the user's cache folder. Run it again after a change in go/ or nids.c.
#
# PcapPlusPlus is not among them: Debian has no package of it, and its Python wrapper has no TCP reassembly.

set -uo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
cache=${TCPREASM_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/tcpreasm-peers}
python=${PYTHON:-python3}
mkdir -p "$cache/bin" || exit 1
root=()
((EUID == 0)) || root=(sudo)
missing=()

# peer NAME COMMAND...: runs it, and notes the name where it fails.
peer() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || missing+=("$name")
}

debian() {
    local package wanted=()
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || wanted+=("$package")
    done
    ((${#wanted[@]} == 0)) || DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
}

# gopacket NAME: the program of that name, out of what Debian's source packages put below /usr/share/gocode.
gopacket() {
    debian golang-go golang-github-google-gopacket-dev golang-golang-x-net-dev golang-golang-x-sys-dev &&
        (cd "$here/go" && GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$cache/go" GOFLAGS='' go build -o "$cache/bin/$1" common.go "$1.go")
}

libnids() {
    debian gcc libc6-dev libnids-dev libnet1-dev libpcap0.8-dev && gcc -O3 -Wall -Wextra -o "$cache/bin/nids" "$here/nids.c" -lnids -lpcap -lnet
}

package() {
    [[ -x $cache/venv/bin/python ]] || "$python" -m venv "$cache/venv" || return 1
    "$cache/venv/bin/python" -m pip install -q --disable-pip-version-check "$1"
}

command -v apt-get >/dev/null && "${root[@]}" apt-get update -qq
peer "gopacket tcpassembly" gopacket tcpassembly
peer "gopacket reassembly" gopacket reassembly
peer libnids libnids
peer tcpflow debian tcpflow
peer tshark debian tshark
peer scapy package scapy
peer dpkt package dpkt
peer pktcap package pktcap

printf 'programs and environment: %s\n' "$cache"
if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}"
    exit 1
fi
