"""Writes small HDF5 files in the shapes of DROID's, robomimic's, LIBERO's and ACT's recorders."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
from numpy.typing import NDArray

OSC_POSE = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "impedance_mode": "fixed",
    "control_delta": True,
}
SERIALS = ("15000001", "20000002", "10000003")
"""Of the wrist and of exterior 2 and 1: the one with the lesser serial comes last."""


def pictures(seed: int, steps: int, size: tuple[int, int] = (24, 32)) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) that are reddish and bright at the top, so that none can be turned or swapped unseen."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    frames = []
    for step in range(steps):
        wave = 20 * np.sin(x / 5 + seed + step / 3)
        red = np.clip(220 - 3 * y + wave, 0, 255)
        frames.append(np.stack([red, red / 3, red / 6], axis=-1))
    return np.asarray(frames, np.uint8)


def environment(controller: object = OSC_POSE, rate: float = 20) -> str:
    kwargs = {"robots": ["Panda"], "control_freq": rate, "controller_configs": controller}
    return json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})


def write_demos(
    path: Path,
    lengths: Sequence[int],
    *,
    libero: bool = False,
    seed: int = 0,
    names: Sequence[str] | None = None,
    task: str = "lift the cube",
    controller: object = OSC_POSE,
) -> Path:
    """A file of demonstrations; of LIBERO's kind it is upside down and its observations follow their actions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = environment(controller)
        data.attrs["total"] = sum(lengths)
        if libero:
            data.attrs["problem_info"] = json.dumps({"language_instruction": task})
            data.attrs["macros_image_convention"] = "opengl"
        for number, steps in enumerate(lengths):
            name = names[number] if names else f"demo_{number}"
            _write_demo(data.create_group(name), steps, 100 * seed + number, libero)
        if not libero:
            file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    return path


def _write_demo(group: h5py.Group, steps: int, seed: int, libero: bool) -> None:
    rng = np.random.default_rng(seed)
    joints = rng.uniform(-1, 1, (steps + 1, 7))  # before each action, and after the last
    actions = rng.uniform(-1, 1, (steps, 7))
    group.attrs["num_samples"] = steps
    group.attrs["model_file"] = "<mujoco/>"
    group.create_dataset("actions", data=actions)
    group.create_dataset("states", data=np.concatenate([np.arange(steps)[:, None], joints[:-1]], axis=1))
    group.create_dataset("dones", data=(np.arange(steps) == steps - 1).astype(np.uint8))
    group.create_dataset("rewards", data=(np.arange(steps) == steps - 1).astype(np.float64))
    frames = pictures(seed, steps + 1)
    if libero:
        group.create_dataset("obs/agentview_rgb", data=frames[1:, ::-1])
        group.create_dataset("obs/joint_states", data=joints[1:])
        return
    for folder, part in (("obs", slice(0, -1)), ("next_obs", slice(1, None))):
        group.create_dataset(f"{folder}/agentview_image", data=frames[part], compression="gzip")
        group.create_dataset(f"{folder}/robot0_joint_pos", data=joints[part], compression="gzip")


def write_aloha(
    path: Path,
    steps: int = 6,
    *,
    seed: int = 0,
    cameras: Sequence[str] = ("cam_high", "cam_low", "cam_left_wrist"),
    jpeg: bool = False,
    arms: int = 14,
) -> Path:
    """An episode as ACT's recorder writes it: cameras in its own order, images padded to the longest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file.attrs["compress"] = jpeg
        file.create_dataset("action", data=rng.uniform(-1, 1, (steps, arms)).astype(np.float32))
        for name in ("qpos", "qvel", "effort"):
            values = rng.uniform(-1, 1, (steps, arms)).astype(np.float32)
            file.create_dataset(f"observations/{name}", data=values)
        lengths = []
        for number, camera in enumerate(cameras):
            frames = pictures(10 * seed + number, steps)
            if not jpeg:
                file.create_dataset(f"observations/images/{camera}", data=frames)
                continue
            images = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 95, "BGR") for frame in frames]
            lengths.append([len(image) for image in images])
            padded = [np.frombuffer(image.ljust(9000, b"\0"), np.uint8) for image in images]
            file.create_dataset(f"observations/images/{camera}", data=np.stack(padded))
        if jpeg:
            file.create_dataset("compress_len", data=np.asarray(lengths, np.float32))
    return path


def write_droid(
    folder: Path, steps: int, write_video: Callable[..., Path], *, seed: int = 0, waited: int = 0, short: str = ""
) -> Path:
    """An episode's folder as DROID's recorder writes it, with a stereo video for each camera.

    Args:
        folder: of the episode.
        steps: of the trajectory.
        write_video: writes a video of so many frames.
        seed: of what is recorded.
        waited: steps at the start in which no action was given.
        short: serial of a camera that is a frame short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    idle = np.arange(steps) < waited
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file.attrs["current_task"] = "stack the cups"
        file.attrs["success"], file.attrs["failure"] = True, False

        def put(name: str, values: Any) -> None:
            file.create_dataset(name, data=values, chunks=(1, *np.shape(values)[1:]))

        put("action/cartesian_velocity", np.where(idle[:, None], 0, rng.uniform(-1, 1, (steps, 6))))
        put("action/gripper_position", rng.uniform(0, 1, steps))
        put("observation/robot_state/joint_positions", rng.uniform(-1, 1, (steps, 7)))
        put("observation/timestamp/skip_action", idle)
        put("observation/timestamp/control/step_start", 1_700_000_000_000 + np.arange(steps) * 200 // 3)
        for number, serial in enumerate(SERIALS):
            put(f"observation/camera_type/{serial}", np.full(steps, min(number, 1)))
            put(f"observation/camera_extrinsics/{serial}_left", rng.uniform(-1, 1, (steps, 6)))
            put(f"observation/timestamp/cameras/{serial}_frame_received", np.arange(steps) + (1 << 40))
            for suffix in ("", "-stereo"):
                video = folder / f"recordings/MP4/{serial}{suffix}.mp4"
                write_video(video, frames=steps - (serial == short), rate=60, seed=seed + 20 * number)
    return folder
