"""The Zarr v3 codec that lets any Zarr reader open a part; registered as the entry point `uwm.jpeg`."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import simplejpeg
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from storage_schemas.store.frames import QUALITY, decode_frames


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """Zarr v3 array-to-bytes codec `uwm.jpeg`: a chunk (1, ..., H, W, 3) of uint8 is one JPEG file."""

    is_fixed_size = False
    quality: int = QUALITY

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The codec that a Zarr metadata document describes."""
        return cls(**(data.get("configuration") or {}))

    def to_dict(self) -> dict[str, Any]:
        """The codec as a Zarr metadata document describes it."""
        return {"name": "uwm.jpeg", "configuration": {} if self.quality == QUALITY else {"quality": self.quality}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        frame = np.empty(chunk_spec.shape[-3:], np.uint8)
        decode_frames([chunk_data.to_bytes()], "jpeg", [frame])
        return chunk_spec.prototype.nd_buffer.from_numpy_array(frame.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        frame = np.ascontiguousarray(chunk_data.as_numpy_array().reshape(chunk_spec.shape[-3:]))
        return chunk_spec.prototype.buffer.from_bytes(simplejpeg.encode_jpeg(frame, self.quality, "RGB", "420"))

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before encoding. Raises NotImplementedError."""
        raise NotImplementedError
