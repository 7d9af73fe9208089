"""Many rows on several cores: other processes encode blocks of rows beside this one.

`python -m localdpo.data.parallel` is such a process: it reads a pickled Encoder and then blocks of rows on
its stdin, writes what came of each to its stdout, and ends with its input. It is started by name and not by
multiprocessing, which would run a person's own script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from localdpo.core.errors import LocalDPOError, UserError
from localdpo.data.render import require_end
from localdpo.out import guard

if TYPE_CHECKING:
    from localdpo.data.encode import Encoded, Encoder
    from localdpo.data.types import Example

Block: TypeAlias = "list[tuple[int, Example]]"
# So many blocks are encoded before others help, since a process takes seconds to start.
ALONE: Final = 12
# Each process takes some 200 MB.
_MOST_PROCESSES: Final = 4
# Enough to go on with while a process starts.
_MOST_RESULTS: Final = 32
# A block goes through at once: a thread that writes on waits for its turn in this process every time.
_PIPE_BYTES: Final = 2**20


def encode_blocks(encoder: Encoder, blocks: Iterable[Block]) -> Generator[Encoded, None, None]:
    """What comes of each block, in their order. Raises what `encoder` raises."""
    # Code that came with a tokenizer is not there in another process.
    travels = type(encoder.renderer.tokenizer).__module__.startswith("transformers.")
    helpers = _Helpers(encoder, _cores() - 1 if travels else 0)
    results: deque[Future[Encoded]] = deque()
    limits: list[str] = []

    def taken() -> Encoded:
        encoded = results.popleft().result()
        limits.extend(encoded.limits)
        require_end(limits)
        return encoded

    with contextlib.closing(helpers):
        for number, block in enumerate(blocks):
            at_work = sum(not result.done() for result in results)
            if number >= ALONE and at_work < 2 * helpers.count:
                results.append(helpers.encode(block))
            else:
                results.append(Future())
                results[-1].set_result(encoder.encode(block))
            # What is done waits for what comes before it, within limits.
            while results and (results[0].done() or len(results) > _MOST_RESULTS):
                yield taken()
        while results:
            yield taken()


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)


class _Helpers:
    """Up to `count` processes, each started when there is something to do for it."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self.count = count
        self._encoder = encoder
        self._pickled = b""
        self._threads = ThreadPoolExecutor(max(1, count))
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self._processes: list[subprocess.Popen[bytes]] = []

    def encode(self, block: Block) -> Future[Encoded]:
        """What will have come of a block."""
        # Here, since no thread can pickle what encodes rows meanwhile.
        self._pickled = self._pickled or pickle.dumps(self._encoder, pickle.HIGHEST_PROTOCOL)
        return self._threads.submit(self._encode, pickle.dumps(block, pickle.HIGHEST_PROTOCOL))

    def close(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def _encode(self, block: bytes) -> Encoded:
        process = self._idle.get()
        try:
            process = process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            _send(block, process.stdin)
            answer: Encoded | LocalDPOError = pickle.loads(_received(process.stdout))
        except (EOFError, OSError) as error:
            status = None if process is None else process.wait()
            process = None
            raise UserError(
                f"a process that tokenised rows ended with status {status}; if memory ran out, close other "
                "programs, then run it again"
            ) from error
        finally:
            self._idle.put(process)
        if isinstance(answer, LocalDPOError):
            raise answer
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=_PIPE_BYTES
        )
        self._processes.append(process)
        assert process.stdin is not None
        _send(self._pickled, process.stdin)
        return process


def _send(content: bytes, pipe: IO[bytes]) -> None:
    pipe.write(len(content).to_bytes(8))
    pipe.write(content)
    pipe.flush()


def _received(pipe: IO[bytes]) -> bytes:
    """What was sent, in one piece. Raises EOFError at the end."""
    size = int.from_bytes(pipe.read(8))
    content = pipe.read(size)
    if not size or len(content) < size:
        raise EOFError
    return content


def main() -> None:
    """Encode what comes on stdin until it ends. What libraries print goes to stderr."""
    # Ctrl-C is for who started this; its end is the end of the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        encoder: Encoder = pickle.loads(_received(sys.stdin.buffer))
        while True:
            block: Block = pickle.loads(_received(sys.stdin.buffer))
            try:
                answer: Encoded | LocalDPOError = encoder.encode(block)
            except LocalDPOError as error:
                answer = error
            _send(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL), output)


if __name__ == "__main__":
    guard()
    main()
