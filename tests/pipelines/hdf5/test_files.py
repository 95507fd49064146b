"""What somebody may have put into an HDF5 file: nothing of it leads elsewhere, takes any memory, or ends the reader."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.hdf5.files import describe, read_arrays, read_blocks
from pipelines.hdf5.layout import BLOCK, MAX_TEXT, Array
from pipelines.video import isolation


def opened(path: Path) -> SourceFile:
    return SourceFile(str(path), "file", path.stat().st_size)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., SourceFile]:
    """A function that has a file filled by another one."""

    def make(fill: Callable[[h5py.File], object], **options: object) -> SourceFile:
        path = tmp_path / "a.hdf5"
        with h5py.File(path, "w", **options) as file:
            fill(file)
        return opened(path)

    return make


def reason(action: Callable[[], object]) -> str:
    with pytest.raises(BadDataError) as caught:
        action()
    return caught.value.reason


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", ">f4", ">i8"])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"chunks": (1, 3), "shuffle": True}])
def test_numbers_come_as_they_are(write: Callable[..., SourceFile], dtype: str, options: dict[str, object]) -> None:
    values = np.random.default_rng(0).integers(0, 2, (7, 3)).astype(dtype)
    file = write(lambda root: root.create_dataset("a/b", data=values, **options))
    layout = describe(file, digests=True)
    (array,) = layout.arrays.values()
    assert (array.shape, array.dtype, array.refused) == ((7, 3), values.dtype.newbyteorder("=").name, "")
    np.testing.assert_array_equal(read_arrays(file, layout.arrays)["a/b"], values)


def test_a_remote_file_is_read_like_a_local_one(write: Callable[..., SourceFile], tmp_path: Path) -> None:
    import fsspec

    values = np.arange(60.0).reshape(20, 3)
    local = write(lambda root: root.create_dataset("a", data=values, chunks=(2, 3)))
    fsspec.filesystem("memory").pipe("/hdf5/a.hdf5", Path(local.path).read_bytes())
    remote = SourceFile("/hdf5/a.hdf5", "memory", local.size)
    assert describe(remote, digests=True) == describe(local, digests=True)
    np.testing.assert_array_equal(read_arrays(remote, describe(remote).arrays)["a"], values)


def test_large_arrays_come_in_blocks(write: Callable[..., SourceFile]) -> None:
    frame = 3 << 20
    values = np.repeat(np.arange(25, dtype=np.uint8), frame).reshape(25, frame)
    file = write(lambda root: root.create_dataset("a", data=values))
    blocks = [block for _, block in read_blocks(file, describe(file).arrays)]
    assert max(block.nbytes for block in blocks) <= BLOCK < values.nbytes
    np.testing.assert_array_equal(np.concatenate(blocks)[:, 0], values[:, 0])


def test_links_are_not_followed(write: Callable[..., SourceFile], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.hdf5", "w") as other:
        other.create_dataset("a", data=np.arange(5.0))

    def fill(root: h5py.File) -> None:
        root.create_dataset("group/here", data=np.arange(5.0))
        root["group/soft"] = h5py.SoftLink("/group/here")
        root["group/external"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/a")
        root["behind"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/")

    file = write(fill)
    layout = describe(file)
    assert set(layout.arrays) == {"group/here"}
    assert set(layout.links) == {"group/soft", "group/external", "behind"}
    assert reason(layout.below("group").check_links) == "link"
    assert reason(lambda: describe(file, "behind")) == "link"
    like = layout.arrays["group/here"]
    for path in ("group/soft", "group/external", "behind/a", "absent"):
        assert reason(lambda path=path: read_arrays(file, {path: like})) in ("link", "missing_field")


def test_numbers_in_other_files_are_not_read(write: Callable[..., SourceFile], tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other.create_dataset("a", data=np.arange(5.0))

    def fill(root: h5py.File) -> None:
        root.create_dataset("raw", (10,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 80)])
        virtual = h5py.VirtualLayout((5,), "f8")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "a", (5,))
        root.create_virtual_dataset("virtual", virtual)

    file = write(fill)
    arrays = describe(file, digests=True).arrays
    for name in ("raw", "virtual"):
        assert arrays[name].refused.startswith("link"), name
        honest = Array(shape=arrays[name].shape, dtype="float64")  # as if the child had said nothing
        assert reason(lambda name=name, honest=honest: read_arrays(file, {name: honest})) == "link"


def test_what_was_never_written_is_not_taken_for_zeros(write: Callable[..., SourceFile]) -> None:
    def fill(root: h5py.File) -> None:
        root.create_dataset("nothing", (10, 3), "f4")
        half = root.create_dataset("half", (10, 3), "f4", chunks=(1, 3))
        half[:5] = 1
        root.create_dataset("absurd", (1 << 40, 3), "f4", chunks=(1024, 3))

    arrays = describe(write(fill)).arrays
    assert arrays["nothing"].refused.startswith("incomplete")
    assert "5 of 10" in arrays["half"].refused
    assert arrays["absurd"].refused.startswith("too_large")


def test_strings_references_and_records_are_not_read(write: Callable[..., SourceFile]) -> None:
    def fill(root: h5py.File) -> None:
        root.create_dataset("texts", data=["a", "b"])
        root.create_dataset("fixed", data=np.array([b"a", b"b"]))
        root.create_dataset("references", data=[root.ref], dtype=h5py.ref_dtype)
        ragged = root.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype(np.uint8))
        ragged[0] = np.arange(3)
        root.create_dataset("records", data=np.zeros(2, [("a", "f4"), ("b", "i8")]))
        root.create_dataset("complex", data=np.zeros(2, np.complex64))
        root.create_dataset("single", data=3.0)

    arrays = describe(write(fill), digests=True).arrays
    assert {name for name, array in arrays.items() if array.refused.startswith("unsupported")} == set(arrays)


def test_a_filter_that_hdf5_does_not_have_is_named(write: Callable[..., SourceFile]) -> None:
    def fill(root: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 3))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((4, 3))
        h5py.h5d.create(root.id, b"a", h5py.h5t.NATIVE_DOUBLE, space, properties).write_direct_chunk((0, 0), b"packed")

    file = write(fill)
    array = describe(file, digests=True).arrays["a"]
    assert array.refused.startswith("unknown_filter")
    assert "32001" in array.refused
    assert reason(lambda: read_arrays(file, {"a": array})) == "unknown_filter"


def test_a_group_that_contains_itself_ends(write: Callable[..., SourceFile]) -> None:
    def fill(root: h5py.File) -> None:
        group = root.create_group("a")
        group["again"] = group

    assert reason(lambda: describe(write(fill))) == "too_large"


def test_short_attributes_are_told_and_all_count(write: Callable[..., SourceFile]) -> None:
    def fill(root: h5py.File, long: str = "x" * (MAX_TEXT + 1)) -> None:
        root.attrs.update({"text": "hello", "bytes": np.bytes_(b"raw"), "number": 3, "flag": True, "real": 0.5})
        root.attrs["long"] = long
        root.attrs["numbers"] = np.arange(4)

    layout = describe(write(fill))
    assert layout.attributes == {"text": "hello", "bytes": "raw", "number": 3, "flag": True, "real": 0.5}
    other = describe(write(lambda root: fill(root, "y" * (MAX_TEXT + 1))))
    assert other.attributes == layout.attributes
    assert other.fingerprint != layout.fingerprint


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"PK" + data[2:], "not_hdf5"),
        (lambda data: data[:-100], "truncated"),
        (lambda data: data[:9], "not_hdf5"),
    ],
)
def test_what_is_no_whole_file_has_its_reason(
    write: Callable[..., SourceFile], change: Callable[[bytes], bytes], expected: str
) -> None:
    path = Path(write(lambda root: root.create_dataset("a", data=np.arange(500.0))).path)
    path.write_bytes(change(path.read_bytes()))
    assert reason(lambda: describe(opened(path))) in (expected, "corrupt" if expected == "not_hdf5" else expected)


def test_a_file_that_changed_under_the_reader_is_bad(write: Callable[..., SourceFile]) -> None:
    file = write(lambda root: root.create_dataset("a", data=np.arange(12.0).reshape(4, 3)))
    arrays = describe(file).arrays
    assert reason(lambda: read_arrays(file, {"a": Array(shape=(4, 5), dtype="float64")})) == "corrupt"
    Path(file.path).unlink()
    with pytest.raises(FileNotFoundError):
        read_arrays(file, arrays)


def test_a_library_that_crashes_costs_one_file(write: Callable[..., SourceFile]) -> None:
    file = write(lambda root: root.create_dataset("a", data=np.arange(40_000_000, dtype=np.uint8)))
    blocks = read_blocks(file, describe(file).arrays)
    with isolation.borrowed() as child:
        os.kill(child._process.pid, signal.SIGSEGV)
        assert reason(lambda: list(child.ask(file, job="rows", paths=["a"]))) == "decoder_crashed"
    assert sum(len(block) for _, block in blocks) == 40_000_000
