"""A world whose structure is known, as stores: a marker that steps round a ring, left or right by chance.

There are `PLACES` places, drawn as stripes of an image. At every step the action is near +0.8 or near -0.8, whichever a
coin says, and the marker goes one place right or left. So given the current frame the action is bimodal, and given
the action the next frame is certain. By night the marker is bright and the rest dark, by day the other way round.

In some worlds the coin is not the only one to know. Where a walk is `told`, it goes one way to its end, and the
instruction says which. Where it is `felt`, the state has a compass that shows at every step where the next one goes.
No frame shows either.

    python tests/support/ring_world.py FOLDER

writes FOLDER/robot (nights, with actions) and FOLDER/video (days, without), and prints the settings with which the
recipe `debug` learns them in seconds.
"""

import sys
from pathlib import Path
from typing import Literal

import numpy as np

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part

PLACES = 4
SIZE = (4, 2 * PLACES)  # height, width of a frame
CAMERA = "front"
STEP = 0.8
SPREAD = 0.05
DARK, BRIGHT = 25, 230
COMPASS = "compass"
TOLD = {-1: "walk round to the left", 1: "walk round to the right"}
Knows = Literal["nobody", "told", "felt"]

SETTINGS = (
    f"data.cameras={CAMERA}",
    "data.action_dim=1",
    "data.action_horizon=1",
    "data.obs_frames=1",
    "data.next_frames=1",
    "data.next_start=1",
    f"data.resize={SIZE[0]},{SIZE[1]}",
    f"data.crop={SIZE[0] - 2},{SIZE[1]}",
    f"policy.patch=1,{SIZE[0] - 2},{SIZE[1]}",
    "policy.embed_dim=192",
    "policy.timestep_embed_dim=32",
    "policy.num_heads=4",
    "policy.mlp_ratio=2",
    "policy.obs_encoder.embed_dim=32",
    "policy.diffusion.prediction=v",
    "optim.lr=2e-3",
    "optim.schedule=cosine",
    "optim.warmup_steps=50",
    "optim.ema_decay=0.98",
    "train.batch_size=32",
    "train.threads=1",
    "train.log_every=50",
    "train.save_every=10000",
)
"""Of a run of the recipe `debug` on such stores."""


def make_episode(
    name: str, seed: int, *, length: int, day: bool = False, actions: bool = True, knows: Knows = "nobody"
) -> Episode:
    """One walk round the ring; without `actions` it is video."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-1, 1], length)
    if knows == "told":
        side[:] = side[0]
    place = (rng.integers(PLACES) + np.concatenate([[0], np.cumsum(side[:-1])])) % PLACES
    marker, ground = (DARK, BRIGHT) if day else (BRIGHT, DARK)
    stripes = np.where(np.arange(PLACES) == place[:, None], marker, ground).astype(np.uint8)  # (T, PLACES)
    row = stripes.repeat(SIZE[1] // PLACES, axis=1)  # (T, W)
    frames = np.broadcast_to(row[:, None, :, None], (length, *SIZE, 3))
    action = (STEP * side + rng.uniform(-SPREAD, SPREAD, length))[:, None].astype(np.float32)
    return Episode(
        meta=EpisodeMeta(
            episode_id=name,
            source_uri=f"ring://{name}",
            source_format="ring",
            source_fingerprint=str(seed),
            collection="day" if day else "night",
            fps=10.0,
            language=(TOLD[int(side[0])],) if knows == "told" else (),
            success=True,
        ),
        action=action if actions else np.zeros_like(action),
        action_mask=np.full(length, actions),
        frames={CAMERA: np.ascontiguousarray(frames)},
        state={COMPASS: (90 * side + rng.uniform(-20, 20, length))[:, None]} if knows == "felt" else {},
    )


def write_store(
    uri: str | Path, *, seed: int, day: bool = False, actions: bool = True, episodes: int = 32, knows: Knows = "nobody"
) -> str:
    """A new dataset of walks of 24 steps, a quarter of them held out; returns its uri."""
    create_dataset(uri, DatasetSpec(cameras=(CAMERA,), action_dim=1, val_percent=25))
    walks = [
        make_episode(f"{seed}-{number}", 1000 * seed + number, length=24, day=day, actions=actions, knows=knows)
        for number in range(episodes)
    ]
    commit(uri, write_part(uri, walks, run_id="ring", codec="lossless"))
    return str(uri)


if __name__ == "__main__":
    write_store(Path(sys.argv[1]) / "robot", seed=1)
    write_store(Path(sys.argv[1]) / "video", seed=2, day=True, actions=False)
    sys.stdout.write(" ".join(SETTINGS) + "\n")
