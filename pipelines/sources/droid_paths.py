"""Where an episode of DROID was recorded, as its path tells: what makes it the same in every release."""

_RECORDED = len(("lab", "success", "day", "time"))


def recorded(path: str) -> tuple[str | None, bool | None, str | None]:
    """Lab, success and identity of an episode, as far as the path tells under which it was recorded.

    The recorded prefix differs between releases (/nfs/..., gs://...), so the path is read from the right:
    `<lab>/<success|failure>/<day>/<time>/trajectory.h5`. Only such a path names one episode: others give many the
    same folder, and different robots the same name, such as `data/success/episode_0.h5`.
    """
    parts = path.split("/") if path else []
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] in ("success", "failure") and parts[index - 1]:
            tail = parts[index - 1 : -1] if parts[-1].startswith("trajectory") else parts[index - 1 :]
            identity = f"droid\0{'/'.join(tail)}" if len(tail) == _RECORDED and "." not in tail[-1] else None
            return parts[index - 1], parts[index] == "success", identity
    return None, None, None
