"""Cached latents beside the frames: what lies where.

    <dataset>/latents/<name>/latents.json        what the latents are: LatentSpec, written once
    <dataset>/latents/<name>/versions/<n>.json   dataset version n is covered, written when it is
    <dataset>/latents/<name>/<part>/             a Zarr v3 group with the steps of the part of that id
        mean         float16 (variant, step, view, C, h, w); NaN where nothing is encoded
        logvar       the same, of the posterior's variance; a tokenizer without one leaves it out

The inner chunk is one latent, uncompressed; shards cover the same steps as those of the frames, so what a
sample needs lies together. The index of a shard says which steps are encoded: that is what makes encoding
resumable and incremental. Shards are replaced as a whole, by one that holds more.

Dimension letters: K variants, V canonical cameras, C, h, w latent channels, height and width.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from storage_schemas.documents import find_document, write_document
from storage_schemas.errors import UserError
from storage_schemas.location import Location
from storage_schemas.schema import SHARD_STEPS
from storage_schemas.store.shards import HOLE, ShardRead, index_bytes, parse_index

NO_VARIANCE = -30.0
"""Log-variance of a tokenizer that draws nothing."""
DRAWS = 5
"""Uniform numbers that fix a view's crop and colours: row, column, brightness, contrast, saturation."""
_SETTINGS = ("resize", "crop", "fit", "augmentation", "jitter", "decode")
LatentArray = Literal["mean", "logvar"]


class LatentSpec(BaseModel):
    """What cached latents were made from. A run whose settings differ in any of it can't use them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    table_id: str
    """Identity of the dataset's log: another one at the same place is another dataset."""
    tokenizer: str
    """Fingerprint."""
    cameras: tuple[str, ...]
    """The dataset's cameras in canonical order, which is the view axis."""
    encoded: tuple[str, ...]
    """Cameras that are encoded."""
    shape: tuple[int, int, int]
    """C, h, w."""
    variance: bool
    """Whether `logvar` is written."""
    variants: int = Field(1, gt=0)
    """K: each is a crop and colour jitter of its own, the same for all frames of an episode's view."""
    seed: int = 0
    """What the variants' crops and colours follow from."""
    resize: tuple[int, int]
    crop: tuple[int, int]
    fit: str
    augmentation: Literal["sample", "none"]
    jitter: float
    decode: str

    @property
    def entries(self) -> int:
        """Chunks of a shard."""
        return SHARD_STEPS * len(self.cameras)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one latent."""
        return 2 * int(np.prod(self.shape))

    @property
    def arrays(self) -> tuple[LatentArray, ...]:
        """The arrays that are written."""
        return ("mean", "logvar") if self.variance else ("mean",)

    def draws(self, episode_id: str, variant: int) -> NDArray[np.float32]:
        """(V, 5) numbers in [0, 1) that fix the augmentation of an episode in a variant, whatever its row."""
        words = np.frombuffer(hashlib.sha256(episode_id.encode("utf-8", "surrogateescape")).digest()[:16], "<u4")
        generator = np.random.default_rng((self.seed, variant, *words.tolist()))
        return generator.random((len(self.cameras), DRAWS), np.float32)

    def read(self, part: str, variant: int, steps: NDArray[np.int64], views: NDArray[np.int64]) -> list[ShardRead]:
        """Where the means of some steps of a part lie, step by step and view by view; both ascend."""
        ids = (steps[:, None] * len(self.cameras) + views).ravel()
        shards = ids // self.entries
        return [
            ShardRead(f"{part}/{latent_key('mean', variant, shard)}", self.entries, ids[shards == shard] % self.entries)
            for shard in np.unique(shards).tolist()
        ]

    def difference(self, other: "LatentSpec") -> str:
        """The first setting in which other latents are needed, as `their name is ..., not ...`; empty when none is."""
        cached, needed = self.model_dump(mode="json"), other.model_dump(mode="json")
        if missing := sorted(set(other.encoded) - set(self.encoded)):
            return f"they lack camera {missing[0]}"
        for name in ("table_id", "tokenizer", *_SETTINGS):
            if cached[name] != needed[name]:
                return f"their {name} is {cached[name]}, not {needed[name]}"
        return ""


def latents_folder(dataset: Location, name: str) -> Location:
    """Where the latents of a dataset lie. Raises UserError when `name` is no name of a folder."""
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{name!r} is no name for latents: use letters, digits, - and _")
    return dataset / "latents" / name


def load_spec(folder: Location) -> LatentSpec | None:
    """What the latents in a folder are, None when there are none. Raises DamagedError."""
    return find_document(folder / "latents.json", LatentSpec)


def save_spec(folder: Location, spec: LatentSpec) -> None:
    """Write what the latents are; one of several writers wins, and all must agree with it."""
    try:
        write_document(folder / "latents.json", spec, exclusive=True)
    except FileExistsError:
        return  # the caller compares


def covered(folder: Location, version: int, collections: Sequence[str]) -> bool:
    """Whether all episodes of a version, or of some of its collections, are encoded."""
    marks = folder / "versions"
    return any((marks / name).exists() for name in (_mark(version, ()), _mark(version, collections)))


def mark_covered(folder: Location, version: int, collections: Sequence[str], episodes: int) -> None:
    """Say that they are; call it when everything else is on disk."""
    facts = {"version": version, "collections": sorted(collections), "episodes": episodes}
    write_document(folder / "versions" / _mark(version, collections), facts)


def _mark(version: int, collections: Sequence[str]) -> str:
    names = json.dumps(sorted(collections)).encode()
    return f"{version}.json" if not collections else f"{version}-{hashlib.sha256(names).hexdigest()[:12]}.json"


def latent_key(array: LatentArray, variant: int, shard: int) -> str:
    """Where a shard of a variant lies in its part."""
    return f"{array}/c/{variant}/{shard}/0/0/0/0"


def present_chunks(shard: Location, entries: int) -> NDArray[np.bool_]:
    """Which of its `entries` chunks a shard holds; none when there is no such file.

    Raises:
        DamagedError: when the index is damaged.
    """
    if not shard.exists():
        return np.zeros(entries, np.bool_)
    tail = shard.read_bytes(-index_bytes(entries))
    return np.asarray(parse_index(tail, shard.size())[:, 0] != HOLE, np.bool_)


def latent_metadata(spec: LatentSpec, steps: int) -> dict[str, bytes]:
    """All `zarr.json` documents of a part of `steps` steps."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"uwm_latents": spec.model_dump(mode="json")}}
    documents = {"zarr.json": group} | {f"{name}/zarr.json": _array(spec, name, steps) for name in spec.arrays}
    return {key: json.dumps(document, indent=1).encode() for key, document in documents.items()}


def _array(spec: LatentSpec, name: LatentArray, steps: int) -> dict[str, object]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    views = len(spec.cameras)
    sharding = {
        "chunk_shape": [1, 1, 1, *spec.shape],
        "codecs": [little],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [spec.variants, steps, views, *spec.shape],
        "data_type": "float16",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1, SHARD_STEPS, views, *spec.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["variant", "step", "view", "channel", "y", "x"],
        "attributes": {},
    }
