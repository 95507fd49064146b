"""The features of RLDS episodes as sets of Open X-Embodiment other than DROID have them."""

from typing import Any

import numpy as np
import simplejpeg

Features = dict[str, Any]


def _images(steps: int, seed: int) -> list[bytes]:
    y, x = np.mgrid[0:24, 0:32]
    pixels = [np.stack([x * 6 + 5 * i, y * 8, (x + y + seed) * 3], axis=-1).astype(np.uint8) for i in range(steps)]
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(one)) for one in pixels]


def _steps(steps: int) -> Features:
    return {
        "steps/is_first": [int(i == 0) for i in range(steps)],
        "steps/is_last": [int(i == steps - 1) for i in range(steps)],
        "steps/is_terminal": [int(i == steps - 1) for i in range(steps)],
        "steps/reward": [0.0] * steps,
    }


def _numbers(widths: dict[str, int], steps: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.uniform(-1, 1, steps * width).astype(np.float32).tolist() for name, width in widths.items()}
    return {f"steps/{name}": values for name, values in drawn.items()}


FRACTAL = {
    "action/world_vector": 3,
    "action/rotation_delta": 3,
    "action/gripper_closedness_action": 1,
    "action/base_displacement_vector": 2,
    "action/base_displacement_vertical_rotation": 1,
    "observation/base_pose_tool_reached": 7,
    "observation/gripper_closed": 1,
    "observation/orientation_box": 6,
    "observation/natural_language_embedding": 512,
}


def fractal(steps: int = 6, seed: int = 0) -> Features:
    """An episode of RT-1's data."""
    return {
        "attributes/collection_mode_name": [b"teleop"],
        "aspects/success": [1],
        **_steps(steps),
        **_numbers(FRACTAL, steps, seed),
        "steps/action/terminate_episode": [0, 1, 0] * steps,
        "steps/observation/natural_language_instruction": [f"pick can {seed}".encode()] * steps,
        "steps/observation/image": _images(steps, seed),
    }


def bridge(steps: int = 6, seed: int = 0, *, views: int = 2) -> Features:
    """An episode of BridgeData V2 with so many cameras; the images of the others are stand-ins."""
    features = {
        **_steps(steps),
        **_numbers({"action": 7, "observation/state": 7, "language_embedding": 512, "discount": 1}, steps, seed),
        "steps/language_instruction": [b"put the pot on the stove"] * steps,
        "episode_metadata/file_path": [b"/nfs/kun2/bridge/success/traj_group0/traj3/out.npy"],
        "episode_metadata/episode_id": [seed],
        "episode_metadata/has_language": [1],
    }
    blank = simplejpeg.encode_jpeg(np.zeros((24, 32, 3), np.uint8))
    for view in range(4):
        features[f"episode_metadata/has_image_{view}"] = [int(view < views)]
        images = _images(steps, seed + view) if view < views else [blank] * steps
        features[f"steps/observation/image_{view}"] = images
    return features


def declaration(features: Features, steps: int) -> Features:
    """The `features.json` of such records."""
    tree: Features = {}
    for key, values in features.items():
        node: Features = {"tensor": {"dtype": "float32", "shape": {"dimensions": [str(len(values) // steps)]}}}
        if isinstance(values[0], bytes):
            node = {"text": {}} if "instruction" in key or "name" in key or "path" in key else {"image": {}}
        place = tree
        *folders, name = key.split("/")
        for folder in folders:
            place = place.setdefault(folder, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
        place[name] = node
    tree["steps"] = {"sequence": {"feature": tree["steps"]}}
    return {"featuresDict": {"features": tree}}
