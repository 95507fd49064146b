"""Writes valid videos of any container, codec, rate, start and orientation, whose frames carry their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st
from painted import Pixels, paint_number

from pipelines.export.videos import leave_real_time

RATES = [Fraction(*rate) for rate in (
    (1, 20), (1, 2), (1, 1), (5, 1), (10, 1), (12, 1), (15000, 1001), (15, 1), (24000, 1001), (24, 1), (25, 1),
    (30000, 1001), (30, 1), (50, 1), (60000, 1001), (60, 1), (120, 1),
)]  # fmt: skip
MPEG_RATES = [rate for rate in RATES if 23 < rate < 100]
B_FRAMES = {
    "libx264": ("0", "1", "2", "3", "8"),
    "mpeg4": ("0", "2"),
    "mpeg2video": ("0", "2"),
    "mpeg1video": ("0", "2"),
}
KINDS = tuple(
    f"{container}/{codec}"
    for container, codecs in {
        "mp4": "libx264 libx265 mpeg4 libsvtav1 libvpx-vp9",
        "mov": "libx264 mjpeg prores qtrle",
        "matroska": "libx264 libx265 ffv1 mpeg2video",
        "webm": "libvpx libvpx-vp9",
        "avi": "libx264 mpeg4 ffvhuff mjpeg huffyuv",
        "asf": "libx264 mpeg4 wmv2",
        "flv": "libx264 flv",
        "mpegts": "libx264 libx265 mpeg2video",
        "mpeg": "mpeg2video mpeg1video",
        "vob": "mpeg2video",
        "nut": "libx264 mpeg4",
        "h264": "libx264",
        "hevc": "libx265",
        "m4v": "mpeg4",
        "mpeg2video": "mpeg2video",
        "mpeg1video": "mpeg1video",
        "ivf": "libvpx libsvtav1",
        "obu": "libsvtav1",
        "ogg": "libvpx",
        "yuv4mpegpipe": "rawvideo",
        "gif": "gif",
        "apng": "apng",
        "mxf": "mpeg2video",
        "rm": "rv20",
        "3gp": "mpeg4",
        "3g2": "mpeg4",
        "f4v": "libx264",
        "ismv": "libx264",
        "wtv": "mpeg2video",
        "mjpeg": "mjpeg",
    }.items()
    for codec in codecs.split()
)
"""Container and codec of all videos that `recipes` makes."""
UNTIMED = {"mjpeg", "obu"}
"""Containers that state no rate."""
STARTS = ["mp4", "mov", "matroska", "webm", "flv", "mpegts", "nut", "asf", "ogg", "mpeg", "vob"]
GAPS = ["mp4", "mov", "matroska", "webm", "mpegts", "nut", "flv", "apng", "gif"]
TURNED = ["mp4", "mov", "3gp", "3g2"]
FRAGMENTS = (
    "",
    "faststart",
    "frag_keyframe+empty_moov",
    "frag_keyframe+empty_moov+default_base_moof",
    "dash+frag_keyframe",
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A video to write."""

    format: str
    codec: str
    rate: Fraction = Fraction(30)
    numbers: Sequence[int] = tuple(range(1, 61))
    times: Sequence[int] | None = None
    """When the frames appear, in multiples of a frame's time; one after another when None."""
    start: Fraction = Fraction(0)
    size: tuple[int, int] = (96, 128)
    """Height and width of an upright frame."""
    mirrored: bool = False
    quarters: int = 0
    """What makes a coded frame upright: mirroring left and right, then so many quarter turns counterclockwise."""
    options: dict[str, str] = field(default_factory=dict)
    mux: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> list[float]:
        """When the frames appear after the first one."""
        return [float(time / self.rate) for time in self.times or range(len(self.numbers))]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Valid videos."""
    format, _, codec = draw(st.sampled_from(KINDS)).partition("/")  # noqa: A001
    rates = [Fraction(one) for one in (5, 10, 20, 25, 50)] if format == "gif" else RATES
    if codec in ("mpeg1video", "mpeg2video"):
        rates = MPEG_RATES
    if format in ("mpeg", "vob"):  # several frames of a higher rate share one time
        rates = [rate for rate in MPEG_RATES if rate <= 30]
    if codec == "libsvtav1":  # at lower rates its pictures are not to be recognized
        rates = [rate for rate in RATES if 10 <= rate <= 60]
    rate = draw(st.sampled_from(rates))
    count = draw(st.sampled_from([1, 4, 6, 8, 20, 45] + [90] * (codec != "libsvtav1")))  # its 65th frame can be broken
    least = {"apng": 2, "mpegts": 20, "mpeg": 20, "vob": 20}  # one frame were a PNG, in few no stream is found
    count = max(count, least.get(format, 1))
    times = None
    if format in GAPS and draw(st.booleans()):
        steps = st.lists(st.sampled_from([1] * 8 + [2, 3, 40]), min_size=count - 1, max_size=count - 1)
        times = np.cumsum([0, *draw(steps)]).tolist()
    turned = format in TURNED and draw(st.booleans())
    size = draw(st.sampled_from([(96, 128), (64, 64), (128, 96), (48, 208), (144, 176), (240, 320)]))
    options = {}
    if codec in B_FRAMES:
        options = {"bf": draw(st.sampled_from(B_FRAMES[codec]))}
    if codec == "libx264":
        options |= {"preset": "ultrafast", "g": draw(st.sampled_from(["1", "5", "30", "250"]))}
    if codec == "libx265":
        frames = draw(st.sampled_from("024"))
        options = {"x265-params": f"bframes={frames}:log-level=none:pools=1", "preset": "ultrafast"}
    if codec == "libsvtav1":
        options = {"preset": "8", "crf": "10", "svtav1-params": "lp=1:enable-tf=0:tune=0"}
    flags = draw(st.sampled_from(FRAGMENTS)) if format in ("mp4", "mov") else ""
    return Recipe(
        format=format,
        codec=codec,
        rate=rate,
        numbers=range(1, count + 1),
        times=times,
        start=Fraction(draw(st.sampled_from(["0", "1.067", "30", "3600", "90000"])))
        if format in STARTS
        else Fraction(),
        size=(96, 128) if codec in ("rv20", "flv") else size,
        mirrored=turned and draw(st.booleans()),
        quarters=draw(st.integers(0, 3)) if turned else 0,
        options=options,
        mux={"movflags": flags} if flags else {},
    )


def pixel_format(codec: str) -> str:
    if codec == "mjpeg":
        return "yuvj420p"
    formats = [item.name for item in av.Codec(codec, "w").video_formats or ()]
    preferred = ("yuv420p", "yuv422p", "yuv422p10le", "rgb24", "rgb8", "bgr0")
    return next((name for name in preferred if name in formats), formats[0] if formats else "yuv420p")


def display_matrix(mirrored: bool, quarters: int) -> tuple[int, ...]:
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    flip = -1 if mirrored else 1
    return (flip * cos << 16, flip * -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30)


def coded(upright: Pixels, recipe: Recipe) -> Pixels:
    """The frame that becomes `upright` when it is mirrored and turned as the recipe says."""
    turned = np.rot90(upright, -recipe.quarters)
    return np.ascontiguousarray(turned[:, ::-1] if recipe.mirrored else turned)


def write(path: Path, recipe: Recipe, pictures: Sequence[Pixels] | None = None) -> Path:
    """Write the video; upright frames show their numbers, or `pictures`."""
    shown = pictures or [paint_number(number, *recipe.size) for number in recipe.numbers]
    with path.open("wb") as file, av.open(file, "w", format=recipe.format, options=recipe.mux) as container:
        stream: Any = container.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.height, stream.width = coded(shown[0], recipe).shape[:2]
        stream.pix_fmt = pixel_format(recipe.codec)
        stream.codec_context.time_base = 1 / recipe.rate
        if recipe.mirrored or recipe.quarters:
            stream.set_display_matrix(display_matrix(recipe.mirrored, recipe.quarters))
        for index, pixels in enumerate(shown):
            rgb = av.VideoFrame.from_ndarray(coded(pixels, recipe), format="rgb24")
            frame = rgb.reformat(format=stream.pix_fmt)
            frame.pts = (recipe.times[index] if recipe.times else index) + round(recipe.start * recipe.rate)
            frame.time_base = 1 / recipe.rate
            container.mux(stream.encode(frame))
            if index == 0:
                leave_real_time()
        container.mux(stream.encode())
    return path
