"""Jobs in child processes that may be killed, one after the other, for scripts that are slow to import.

On Linux a child is a fork of the script, which has imported everything and computed nothing. Elsewhere it is
a new process: macOS' frameworks, MLX's among them, hang in a fork.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Job = dict[str, Any]
FORKS = sys.platform.startswith("linux") and "LOCALDPO_TEST_SPAWN" not in os.environ


def serve(work: Callable[[Job], int], wait: Callable[[int, Job], int]) -> None:
    """Carry out the jobs of stdin, a JSON object a line: `work` in a child, whose id `wait` is given.

    Prints what `wait` returns, the child's exit status as a rule.
    """
    if len(sys.argv) > 1:
        _work(work, json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(wait(_start(work, json.loads(line)), json.loads(line)), flush=True)


def status_of(child: int, job: Job) -> int:
    """The exit status of a child, -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _start(work: Callable[[Job], int], job: Job) -> int:
    if not FORKS:
        command = [sys.executable, sys.argv[0], json.dumps(job)]
        return os.posix_spawn(sys.executable, command, os.environ)
    child = os.fork()
    if child == 0:
        _work(work, job)
    return child


def _work(work: Callable[[Job], int], job: Job) -> None:
    """Never returns: what the script has open stays its parent's."""
    code = 1
    try:
        code = work(job)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
