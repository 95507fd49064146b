"""Reads from an object store, through TensorStore: shard indexes are cached, ranges of a sample joined.

A request that fails or hangs is repeated with growing pauses. What still fails is a `StorageError`;
bytes that come whole but are not what was written are a `DamagedError`.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import DamagedError, StorageError, UserError
from storage_schemas.location import Location, RemotePolicy
from storage_schemas.store.shards import ShardRead

_INDEX_CACHE = 256 * 2**20
"""Bytes of shard indexes that a reader keeps."""
_NUMBER_CACHE = 256 * 2**20
"""Bytes of arrays of numbers that a reader keeps."""
_OPEN_SHARDS = 4096
_OUTAGE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNKNOWN",
           "INTERNAL", "UNAUTHENTICATED", "CANCELLED")  # fmt: skip


class RemoteParts:
    """`PartReader` of an object store.

    TensorStore's threads do not survive a fork and abort the child, so a forked child of a process
    that has read gets an error that says what to do.
    """

    _owner: ClassVar[int | None] = None

    def __init__(self, folder: Location) -> None:
        """Take the folder of all parts. Raises UserError when TensorStore has no driver for it."""
        policy = RemotePolicy.from_environment()
        # a transfer that stands still is given up and repeated; TensorStore reads these when it starts
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(max(1, round(policy.timeout))))
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
        import tensorstore

        base = folder.kvstore()
        if base is None:
            raise UserError(f"{folder.uri}: frames can be read from local folders, s3:// and gs:// only")
        RemoteParts._owner = RemoteParts._owner or os.getpid()
        self._check_process()
        self._uri = folder.uri
        self._deadline = policy.deadline
        self._base = base
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE}})
        self._files = self._wait(tensorstore.KvStore.open(base, context=self._context), "")
        self._shards: dict[str, Any] = {}
        self._numbers: OrderedDict[str, bytes] = OrderedDict()
        self._number_bytes = 0

    def chunks(self, key: str, entries: int, ids: NDArray[np.int64]) -> Sequence[bytes | memoryview | None]:
        """See `PartReader`."""
        return next(self.stream([ShardRead(key, entries, ids)]))

    def stream(self, reads: Sequence[ShardRead]) -> Iterator[Sequence[bytes | memoryview | None]]:
        """See `PartReader`. All reads are under way at once, those of one shard in as few requests as possible."""
        import tensorstore

        self._check_process()
        shards = [self._shard(key, entries) for key, entries, _ in reads]
        with tensorstore.Batch() as batch:
            pending = [
                # TensorStore calls the entries of a shard by their big-endian numbers
                [shard.read(int(i).to_bytes(4, "big"), staleness_bound=0.0, batch=batch) for i in read.ids]
                for shard, read in zip(shards, reads, strict=True)
            ]  # a shard never changes, so what is cached stays good
        return map(self._results, (read.key for read in reads), pending)

    def _results(self, key: str, pending: Sequence[Any]) -> list[bytes | memoryview | None]:
        results = [self._wait(read, key) for read in pending]
        return [result.value if result.state == "value" else None for result in results]

    def numbers(self, key: str, start: int, size: int, total: int) -> bytes:
        """See `PartReader`. The first read of an array fetches and checks all of it; later ones cost no request."""
        data = self._numbers.get(key)
        if data is None:
            try:
                data = self.whole(key)
            except FileNotFoundError as error:
                raise DamagedError(f"{key} is missing") from error
            if len(data) != total + 4:
                raise DamagedError(f"{key} is cut short: it has {len(data)} bytes, not {total + 4}")
            if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise DamagedError(f"{key} does not match its checksum")
            self._keep(key, data)
        else:
            self._numbers.move_to_end(key)
        return data[start : start + size]

    def whole(self, key: str) -> bytes:
        """See `PartReader`."""
        self._check_process()
        file = self._wait(self._files.read(key), key)
        if file.state != "value":
            raise FileNotFoundError(key)
        return bytes(file.value)

    def _keep(self, key: str, data: bytes) -> None:
        self._numbers[key] = data
        self._number_bytes += len(data)
        while self._number_bytes > _NUMBER_CACHE and len(self._numbers) > 1:
            self._number_bytes -= len(self._numbers.popitem(last=False)[1])

    def _shard(self, key: str, entries: int) -> Any:
        import tensorstore

        if key not in self._shards:
            if len(self._shards) >= _OPEN_SHARDS:
                # cheap to open again: the indexes that were read lie in the cache of the context
                self._shards.clear()
            codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
            spec = {
                "driver": "zarr3_sharding_indexed",
                "base": {**self._base, "path": self._base["path"] + key},
                "grid_shape": [entries],
                "index_codecs": codecs,
            }
            self._shards[key] = self._wait(tensorstore.KvStore.open(spec, context=self._context), key)
        return self._shards[key]

    def _wait(self, future: Any, key: str) -> Any:
        """The result of a TensorStore operation, or what its error means."""
        try:
            # longer than all of TensorStore's own retries together, so this ends only what hangs
            return future.result(timeout=self._deadline)
        except TimeoutError as error:
            raise StorageError(f"{self._uri}/{key}: no answer within {self._deadline:.0f} s") from error
        except (ValueError, RuntimeError, OSError, KeyError, NotImplementedError) as error:
            text = " ".join(str(error).split())
            if text.startswith(_OUTAGE):
                raise StorageError(f"{self._uri}/{key}: the storage failed: {text[:300]}") from error
            raise DamagedError(f"{key}: {text}") from error

    @staticmethod
    def _check_process() -> None:
        if RemoteParts._owner != os.getpid():
            raise RuntimeError(
                "TensorStore was used before this process was forked: start workers with 'spawn' or 'forkserver'"
            )
