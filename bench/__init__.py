"""Benchmarks of tcpreasm, run from a checkout. Nothing here is installed with the package, and nothing times a test of it.

pytest bench                        each stage alone, and the whole way, on both cores (pytest-benchmark)
python -m bench.captures            makes the captures of the workloads, with what a reassembler must get out of them
python -m bench.run                 every workload in every way of use, each measurement in a fresh process
python -m bench.floor               a bare C loop over the same captures, which holds and delivers nothing
python -m bench.compare REVISION    this tree against another revision

traffic      the workloads: seeded packets, the pcap writer, the truth
captures     makes, keeps and finds the captures
measure      one process, one measurement, one line of JSON; and what checks it against the truth
report       minimum and median, tables, the machine
"""
