"""The command line: arguments, help, errors in one line."""

import os

# OpenMP reads this when torch is imported, and child processes inherit it. A process has several pools of OpenMP
# threads. If waiting threads spin, they take the cores from the threads that compute: beside other programs, a step
# then takes up to ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
