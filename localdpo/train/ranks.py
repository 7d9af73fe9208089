"""The ranks of a run that several processes train together: what they exchange, through MLX's own engine.

`mlx.launch` (or mpirun) starts the same command on every machine and says in the environment which rank each
is. Rank 0 leads: it writes the run and says what comes next. All ranks hold the same weights and add up their
gradients, so they take the same steps. A process that was started alone is rank 0 of 1, for which every
exchange returns what it is given.

A rank that ends breaks MLX's connections of its neighbours, which do not know who began it; who is lost is
seen by `pulse`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from localdpo.core.errors import UserError
from localdpo.core.process import launched_rank
from localdpo.out import say
from localdpo.train.pulse import Followers, Leader, Pulse, open_door

_T = TypeVar("_T")
# Bytes of a message that goes in one exchange, its length in the first 8 of them.
_FRAME: Final = 4096
# All ranks start within this, or each that did ends.
_START_SECONDS: Final = 300


class Ranks:
    """This process among the ranks of its run; alone unless there is a `group`.

    Attributes:
        names: of every rank, `rank 1 (studio.local)`.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group
        self._pulse: Pulse | None = None
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        self.names: tuple[str, ...] = ("rank 0",)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pulse is not None:
            self._pulse.leave()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mine(self, parts: Sequence[_T]) -> Sequence[_T]:
        """This rank's of the parts of some work: every `size`-th."""
        return parts if self.size == 1 else parts[self.rank :: self.size]

    def gather(self, value: _T) -> list[_T]:
        """The values of all ranks in their order; anything that JSON has."""
        if self.size == 1:
            return [value]
        content = json.dumps(value).encode()
        head = len(content).to_bytes(8) + content[: _FRAME - 8]
        heads = self._bytes_of_all(head, _FRAME)
        lengths = [int.from_bytes(part[:8]) for part in heads]
        parts = [part[8:] for part in heads]
        if (rest := max(lengths) - (_FRAME - 8)) > 0:
            tails = self._bytes_of_all(content[_FRAME - 8 :], rest)
            parts = [part + tail for part, tail in zip(parts, tails, strict=True)]
        return [json.loads(part[:length]) for part, length in zip(parts, lengths, strict=True)]

    def lead(self, value: _T) -> _T:
        """Rank 0's value, on every rank."""
        return self.gather(value if self.leads else None)[0] if self.size > 1 else value  # type: ignore[return-value]

    def add(self, tree: Any) -> Any:
        """The sum of the ranks' trees of arrays, the same bits on every rank."""
        if self.size == 1:
            return tree
        arrays: Any = tree_flatten(tree)
        line = mx.concatenate([array.reshape(-1).astype(mx.float32) for _, array in arrays])
        ends = np.cumsum([array.size for _, array in arrays])[:-1].tolist()
        parts = mx.split(self._exchange(mx.distributed.all_sum, line), ends)
        return tree_unflatten(
            [
                (name, part.reshape(array.shape).astype(array.dtype))
                for (name, array), part in zip(arrays, parts, strict=True)
            ]
        )

    def copy(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Rank 0's arrays, to the bit, on every rank; all have arrays of the same names, shapes and types."""
        if self.size == 1:
            return dict(arrays)
        arrays = dict(sorted(arrays.items()))
        # As bytes, which rank 0 alone does not send as zeros.
        parts = [mx.contiguous(array.reshape(-1)).view(mx.uint8) for array in arrays.values()]
        line = mx.concatenate(parts)
        sent = self._exchange(mx.distributed.all_sum, line if self.leads else mx.zeros_like(line))
        ends = np.cumsum([part.size for part in parts])[:-1].tolist()
        return {
            name: part.view(array.dtype).reshape(array.shape)
            for (name, array), part in zip(arrays.items(), mx.split(sent, ends), strict=True)
        }

    def seed(self, *numbers: int) -> None:
        """Set MLX's random key by `numbers` and the rank, so that dropout differs between ranks."""
        if self.size > 1:
            words = np.random.SeedSequence([*numbers, self.rank]).generate_state(1, np.uint64)
            mx.random.seed(int(words[0]))

    def end(self) -> None:
        """Rank 0 tells the others that the run is over."""
        if self._pulse is not None:
            self._pulse.expect_end()
        self.lead("end")

    def fail(self, lines: Sequence[str]) -> None:
        """Tell rank 0 why this rank ends."""
        if self._pulse is not None:
            self._pulse.fail(lines)

    def await_end(self) -> None:
        """Return when rank 0 has gone, or after some seconds."""
        if self._pulse is not None:
            self._pulse.await_end()

    def meet(self) -> None:
        """Learn the ranks' names, and open the connections that show who is there.

        Raises UserError where a rank cannot be reached.
        """
        door = open_door() if self.leads else None
        # Where the other ranks may reach rank 0, the likeliest first.
        addresses = []
        if (hostfile := os.environ.get("MLX_HOSTFILE")) is not None:
            addresses += [place.rpartition(":")[0] for place in json.loads(Path(hostfile).read_text())[0]]
        if (coordinator := os.environ.get("MLX_JACCL_COORDINATOR")) is not None:
            addresses.append(coordinator.rpartition(":")[0])
        addresses = [*dict.fromkeys([*addresses, socket.gethostname()])]
        offer = None if door is None else {**door[1], "addresses": addresses}
        met: list[dict[str, Any]] = self.gather({"host": socket.gethostname(), "offer": offer})
        self.names = tuple(f"rank {rank} ({entry['host']})" for rank, entry in enumerate(met))
        if door is not None:
            self._pulse = Followers(door[0], door[1]["token"], self.names)
        else:
            self._pulse = Leader(met[0]["offer"], self.rank, self.names)

    def _bytes_of_all(self, content: bytes, size: int) -> list[bytes]:
        padded = mx.array(np.frombuffer(content.ljust(size, b"\0"), dtype=np.uint8))
        every = np.array(self._exchange(mx.distributed.all_gather, padded)).reshape(self.size, size)
        return [row.tobytes() for row in every]

    def _exchange(self, function: Callable[..., mx.array], array: mx.array) -> mx.array:
        try:
            result = function(array, group=self._group)
            mx.eval(result)
        except RuntimeError as error:
            if self._pulse is None:
                raise
            raise self._pulse.why_broken() from error
        return result


ALONE: Final = Ranks()


def connect() -> Ranks:
    """The ranks that this process was started among, connected.

    Where some are not there in time, SIGALRM ends the process: MLX waits without end, and holds the
    interpreter meanwhile.

    Raises UserError where a rank cannot be reached.
    """
    if launched_rank() is None:
        return ALONE
    say(f"waiting for the other ranks, {_START_SECONDS // 60} minutes at most", error=True)
    signal.alarm(_START_SECONDS)
    try:
        ranks = Ranks(mx.distributed.init())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the ranks cannot be connected: {error}") from error
    finally:
        signal.alarm(0)
    if ranks.size > 1:
        ranks.meet()
    return ranks
