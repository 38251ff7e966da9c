"""What kills, fuzzes and sabotages; shared by the tests of faults and the longer scripts in benchmarks/.

Its processes are forks, and a fork is as good as a new process only where one thread is running: the libraries that would start
more are told so here, before anything imports them.
"""

import os

ENVIRONMENT = dict(os.environ)
"""As it was, for processes that are no forks of this one."""

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TORCHINDUCTOR_COMPILE_THREADS="1")
os.environ.update(OMP_WAIT_POLICY="PASSIVE")  # where a command asks for two threads: ten that spin would wait for each other
