"""A trained policy as one object: load a folder, give it camera images, get actions.

    policy = AutoPolicy.load("runs/uwm/bundle")
    actions = policy.act({"wrist_image_left": frames}, states={"joint_position": joints}, instruction="open the drawer")

Dimension letters: V views, O observation frames, N next frames, F = O + N, S action steps, A action dimensions, D
numbers of all states, d of one, E features of an instruction, H0 and W0 the size that frames are brought to.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.spaces import Space
from uwm.bundle import is_bundle, load_bundle
from uwm.checkpoint import load_policy
from uwm.conditions import RunState
from uwm.config import RunConfig
from uwm.data.action_plan import ActionPlan
from uwm.data.augment import evaluation_batch
from uwm.data.batch import RawBatch
from uwm.data.frames import fit_frames
from uwm.data.normalize import ActionNormalizer
from uwm.data.pinning import robot_name
from uwm.device import DTYPES, Precision, cast_weights, resolve_device
from uwm.diffusion.modes import MODES, Role
from uwm.eval.sample import parse_mode
from uwm.language.instructions import opened_encoder
from uwm.policy import Policy
from uwm.registry import nearest
from uwm.settings import replace as change

Images = Mapping[str, NDArray[np.uint8]]
"""Camera -> frames (n, height, width, 3) uint8, the oldest first; or one frame, which stands for all n."""


States = Mapping[str, ArrayLike]
"""State -> its numbers in the data's units: (O, d), the oldest first; or (d,), which stands for all O."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a mode predicts; None for what it does not."""

    action: NDArray[np.float32] | None
    """(S, A) in the data's units."""
    frames: dict[str, NDArray[np.uint8]] | None
    """Camera -> (N, H, W, 3): the next observation as the model sees it, cropped."""


class AutoPolicy:
    """A policy ready to act.

    Args:
        policy: in evaluation mode.
        config: of its run.
        normalizer: of its actions.
        device: where it runs.
    """

    def __init__(self, policy: Policy, config: RunConfig, normalizer: ActionNormalizer, device: torch.device) -> None:
        self.policy = policy
        self.config = config
        self.normalizer = normalizer
        self.device = device
        self._heard = lru_cache(maxsize=64)(self._encode)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", dtype: str = "fp32", encoder: str = "") -> Self:
        """Open a bundle of `uwm export`, a checkpoint, or a run's folder for its latest checkpoint.

        Args:
            path: the folder.
            device: `auto` takes CUDA when there is one.
            dtype: of the weights, fp32 or bf16.
            encoder: hub id or folder of CLIP's weights on this machine, for a policy that hears by them; empty looks
                where the run had them. It is loaded with the first instruction, and must be the run's.

        Raises:
            UserError: when it is missing, damaged, or no policy.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        where = resolve_device(device)
        policy, config, normalizer = load_bundle(path)[:3] if is_bundle(path) else load_policy(path, "cpu")
        if encoder:
            config = _with_encoder(config, encoder)
        cast_weights(policy.to(where), cast(Precision, dtype))
        return cls(policy, config, normalizer, where)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it knows."""
        return self.config.data.cameras

    @property
    def action_shape(self) -> tuple[int, int]:
        """(S, A) of the actions that it gives."""
        return self.config.data.action_horizon, self.config.data.action_dim

    @property
    def robots(self) -> tuple[str, ...]:
        """The robots that it was trained on, by name."""
        return self.config.data.robots

    def act(
        self,
        images: Images,
        *,
        states: States | None = None,
        instruction: str | None = None,
        seed: SupportsIndex = 0,
        embodiment: str = "",
        space: Space | None = None,
    ) -> NDArray[np.float32]:
        """The next actions (S, A), as the robot is told them.

        Args:
            images: the current observation: O frames of each camera that there is.
            states: of the robot at the same times; what is left out counts as unknown.
            instruction: what to do; None or an empty one is none.
            seed: of the noise that sampling starts from; the same gives the same actions.
            embodiment: which of `robots` acts, in its own action space; the only one by default.
            space: in which actions are told; the robot's own when one is named, else the run's.

        Returns:
            Actions of that space; of the data's units where nothing is declared.

        Raises:
            UserError: when a camera, a state or the robot is unknown, no camera is given, frames or numbers are of
                another shape, the policy hears no instructions, or the run's actions can't be told in that space.
        """
        action = self.predict(
            "policy", images, states=states, instruction=instruction, seed=seed, embodiment=embodiment
        ).action
        if action is None:
            raise TypeError("mode policy predicted no action")
        own = self.config.data.embodiments[self._robot(embodiment) - 1].action if embodiment else None
        return self._told(action, space or own)

    @torch.no_grad()
    def predict(
        self,
        mode: str,
        images: Images,
        *,
        action: NDArray[np.float32] | None = None,
        next_images: Images | None = None,
        states: States | None = None,
        instruction: str | None = None,
        seed: SupportsIndex = 0,
        embodiment: str = "",
    ) -> Prediction:
        """What a mode predicts.

        Args:
            mode: policy, forward, inverse, video or joint.
            images: the current observation, see `act`.
            action: (S, A) in the run's action space, which forward dynamics needs.
            next_images: N frames of each camera, which inverse dynamics needs.
            states: see `act`.
            instruction: see `act`.
            seed: of the noise.
            embodiment: which of `robots` it is about; the only one by default.

        Raises:
            UserError: when the policy has no such mode, or what it needs is missing or of another shape.
        """
        question = parse_mode(mode)
        if question not in self.policy.modes:
            raise UserError(f"this policy has no mode {mode}: it has {', '.join(sorted(self.policy.modes))}")
        if MODES[question].action is Role.CLEAN and action is None:
            raise UserError(f"mode {mode} needs action: an array {self.action_shape}")
        if MODES[question].next_obs is Role.CLEAN and not next_images:
            raise UserError(f"mode {mode} needs next_images: {self.config.data.next_frames} frames of a camera")
        robot = self._robot(embodiment)
        raw = self._images_and_action(images, next_images or {}, action, robot)
        told = self._condition(states or {}, (instruction or "").strip())
        batch = evaluation_batch(replace(raw, **told), self.config.data, self.normalizer, device=self.device)
        generator = torch.Generator().manual_seed(_seed(seed))
        sample = self.policy.sample(batch, question, generator)
        frames = None if sample.next_obs is None else self.policy.decode(sample.next_obs)
        return Prediction(
            action=None if sample.action is None else self._physical(sample.action[0], robot),
            frames=None if frames is None else self._pictures(frames[0]),
        )

    def _robot(self, embodiment: str) -> int:
        """The id of a robot; that of the only one when none is named. Raises UserError when there is no such robot."""
        if not embodiment:
            return 1 if len(self.robots) == 1 else 0
        if embodiment not in self.robots:
            there = ", ".join(self.robots) or "none"
            raise UserError(f"unknown robot {embodiment!r}{nearest(embodiment, self.robots)}; there are {there}")
        return self.robots.index(embodiment) + 1

    def _told(self, action: NDArray[np.float32], space: Space | None) -> NDArray[np.float32]:
        """Actions (S, A) of the run in another space. Raises UserError when they can't be told in it."""
        data = self.config.data
        if space is None or space == data.action:
            return action
        if data.action is None:
            raise UserError("this policy does not say what its actions mean: leave space out, and read its card")
        plan = ActionPlan(source=space, target=data.action, source_dim=space.dim, target_dim=data.action_dim)
        try:
            return plan.inverse(action)
        except ValueError as error:
            raise UserError(f"actions can't be told in this space: {error}; it has {'; '.join(space.lines)}") from error

    def _images_and_action(
        self, images: Images, next_images: Images, action: NDArray[np.float32] | None, robot: int
    ) -> RawBatch:
        """One sample as the loader gives it, without states and instruction; what is not given is masked."""
        data = self.config.data
        if not images:
            raise UserError(f"no camera is given: there are {', '.join(self.cameras)}")
        current, current_mask = self._frames(images, data.obs_frames)
        following, next_mask = self._frames(next_images, data.next_frames)
        known = np.zeros(self.action_shape, np.float32) if action is None else np.asarray(action, np.float32)
        if known.shape != self.action_shape or not np.isfinite(known).all():
            raise UserError(f"action has the shape {known.shape}, not {self.action_shape}, or is not finite")
        return RawBatch.of_images(
            frames=torch.cat([current, following], dim=1)[None],
            view_mask=torch.cat([current_mask, next_mask], dim=1)[None],
            action=torch.from_numpy(known)[None],
            action_mask=torch.full((1, *self.action_shape), action is not None),
            robot=robot,
        )

    def _condition(self, states: States, instruction: str) -> dict[str, Tensor]:
        """What a sample is conditioned on beside images, by the fields of `RawBatch`."""
        data = self.config.data
        if unknown := [name for name in states if name not in {state.name for state in data.states}]:
            there = ", ".join(state.name for state in data.states) or "none"
            raise UserError(f"unknown state {unknown[0]!r}: this policy observes {there}")
        if instruction and not data.language.is_heard:
            raise UserError("this policy hears no instructions: it was trained with data.language.kind=none")
        nothing = torch.zeros(data.obs_frames, 0, dtype=torch.float64)
        parts = [_numbers(states.get(state.name), state, data.obs_frames) for state in data.states]
        values, masks = zip((nothing, nothing.bool()), *parts, strict=True)
        return {
            "state": torch.cat(values, dim=1)[None],
            "state_mask": torch.cat(masks, dim=1)[None],
            "language": self._heard(instruction) if instruction else torch.zeros(1, data.language.width),
            "language_mask": torch.tensor([bool(instruction)]),
        }

    def _encode(self, instruction: str) -> Tensor:
        """Features (1, E) of an instruction."""
        return opened_encoder(self.config.data.language).encode([instruction])

    def _frames(self, images: Images, count: int) -> tuple[Tensor, Tensor]:
        """Frames (V, n, 3, H0, W0) uint8 and which there are (V, n)."""
        data = self.config.data
        unknown = [camera for camera in images if camera not in self.cameras]
        if unknown:
            raise UserError(f"unknown camera {unknown[0]!r}: there are {', '.join(self.cameras)}")
        frames = torch.zeros(len(self.cameras), count, 3, *data.resize, dtype=torch.uint8)
        mask = torch.zeros(len(self.cameras), count, dtype=torch.bool)
        for camera, given in images.items():
            shown = np.array(given)  # a copy, for torch warns of memory that it may not write
            if shown.ndim == 3:
                shown = np.repeat(shown[None], count, axis=0)
            if shown.dtype != np.uint8 or shown.ndim != 4 or len(shown) != count or shown.shape[-1] != 3:
                raise UserError(
                    f"{camera} is {shown.dtype} {shown.shape}: it takes uint8 ({count}, height, width, 3), or one frame"
                )
            if not shown.size:
                raise UserError(f"{camera} has no pixels: {shown.shape}")
            view = self.cameras.index(camera)
            frames[view] = fit_frames(shown, data.resize, data.fit)
            mask[view] = True
        return frames, mask

    def _physical(self, action: Tensor, robot: int) -> NDArray[np.float32]:
        normalizer = self.normalizer.of(robot_name(robot, self.config.data))
        physical: NDArray[np.float32] = normalizer.denormalize(action.double()).float().cpu().numpy()
        return physical

    def _pictures(self, frames: Tensor) -> dict[str, NDArray[np.uint8]]:
        """Images (V, N, 3, H, W) in [0, 1] by camera."""
        shown = frames.float().clamp(0, 1).mul(255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        return dict(zip(self.cameras, shown, strict=True))


def _numbers(given: ArrayLike | None, state: RunState, count: int) -> tuple[Tensor, Tensor]:
    """Numbers (O, d) of a state and which are known. Raises UserError when they are of another shape."""
    if given is None:
        return torch.zeros(count, state.dim, dtype=torch.float64), torch.zeros(count, state.dim, dtype=torch.bool)
    try:
        values = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"state {state.name} is no array of numbers") from error
    if values.shape not in ((state.dim,), (count, state.dim)) or not np.isfinite(values).all():
        raise UserError(
            f"state {state.name} has the shape {values.shape}, not {(count, state.dim)} or ({state.dim},), or is not "
            "finite"
        )
    shown = np.array(np.broadcast_to(values, (count, state.dim)))
    return torch.from_numpy(shown), torch.ones(shown.shape, dtype=torch.bool)


def _with_encoder(config: RunConfig, place: str) -> RunConfig:
    """The configuration of a policy that hears, with CLIP's weights elsewhere."""
    language = config.data.language
    if language.kind != "clip":
        raise UserError(f"encoder names CLIP's weights: this policy hears by {language.kind}")
    return change(config, data=change(config.data, language=change(language, path=place)))


def _seed(seed: SupportsIndex) -> int:
    """A seed as torch takes it. Raises UserError when it is none."""
    try:
        number = operator.index(seed)
    except TypeError as error:
        raise UserError(f"seed {seed!r} is no whole number") from error
    if not 0 <= number < 1 << 63:
        raise UserError(f"seed {number} is not between 0 and 2^63")
    return number
