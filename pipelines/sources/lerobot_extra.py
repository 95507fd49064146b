"""What LeRobot has no place for, in `meta/uwm.json`: what the numbers mean, and which features are masks.

`uwm export-dataset` writes it. Whoever knows the robot may write it by hand, for `info.json` names numbers and does not
say what they are.
"""

from pydantic import BaseModel, ConfigDict

from storage_schemas.spaces import Camera, Space, StateField


class Extra(BaseModel):
    """The content of `meta/uwm.json`; all of it may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Space | None = None
    """What the action means."""
    states: tuple[StateField, ...] = ()
    """What states mean, by the name that they have in a store."""
    views: tuple[Camera, ...] = ()
    fields: dict[str, str] = {}
    """The state field of a store that a feature is, where it is not the feature's own name."""
    cameras: dict[str, str] = {}
    """The camera of a store that a feature is, where `observation.images.` does not lead to it."""
    action_mask: str = ""
    """Feature that says of each step whether its action is known."""
    view_mask: str = ""
    """Feature that says of each step which cameras saw it, in the order of its names."""
    state_mask: str = ""
    """Feature that says of each step which states are known, in the order of its names."""
    notes: tuple[str, ...] = ()
    """Features that repeat what the list of episodes says, such as an episode's source."""

    @property
    def masks(self) -> frozenset[str]:
        """Features that are no states."""
        return frozenset((self.action_mask, self.view_mask, self.state_mask)) - {""}
