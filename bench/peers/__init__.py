"""The same captures through tcpreasm and through real peers, in the same run.

    bash bench/peers/install.sh             installs and builds the peers, each by itself, as it can be had
    python -m bench.peers                   the workloads of bench.captures, interleaved rounds, every run a process of its own

registry   the peers: what exactly is run, and what its output means
cuts       smaller captures for slow peers, and what is in them
run        the rounds
report     tables, chart, JSON
go/, nids.c, python/    the programs that drive libraries; they share nothing with tcpreasm
"""
