"""Runs one command, and says what it took: launch.py OUTPUT COMMAND...; its standard output goes to the file OUTPUT.

A process of its own, and a small one (python -I -S): what a process had resident before it became another program counts towards the peak
that wait4 tells of that, so the benchmark itself, with numpy in it, must not be the one that starts the peers.
"""

import json
import os
import sys
import time

output, *command = sys.argv[1:]
opened = [(os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
begin = time.perf_counter_ns()
process = os.posix_spawnp(command[0], command, os.environ, file_actions=opened)
_, status, usage = os.wait4(process, 0)
elapsed_ns = time.perf_counter_ns() - begin
print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "ns": elapsed_ns, "peak_rss": usage.ru_maxrss * 1024}))
