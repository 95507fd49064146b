"""Hostile, damaged and random files: refused in one line that says why, and nothing in them runs."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from uwm.reference.importer import import_reference
from uwm.reference.torchfile import NumpyValue, read_torch_file

CANARY = "UWM_CANARY"
COMMAND = f"import os; os.environ['{CANARY}'] = 'dead'"


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may run, change the environment or write a file but the one that is read."""
    monkeypatch.delenv(CANARY, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert CANARY not in os.environ
    assert {path.name for path in tmp_path.rglob("*")} <= {"models.pt", "outside.pkl"}


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


RUN = text(COMMAND) + b"\x85"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "GLOBAL": (b"\x80\x02cos\nsystem\n" + RUN + b"R.", "os.system"),
    "GLOBAL of a Python 2 name": (b"c__builtin__\neval\n" + RUN + b"R.", "__builtin__.eval"),
    "posix": (b"cposix\nsystem\n" + RUN + b"R.", "posix.system"),
    "STACK_GLOBAL": (stack_global("builtins", "exec") + RUN + b"R.", "builtins.exec"),
    "STACK_GLOBAL of no text": (b"K\x01K\x02\x93.", "STACK_GLOBAL"),
    "a protocol that torch does not read": (pickle.dumps({}, protocol=4), "protocol 4"),
    "a dotted name": (stack_global("torch", "serialization.os.system") + RUN + b"R.", "torch.serial"),
    "getattr": (b"cbuiltins\ngetattr\n(ctorch\nload\nVos\ntR.", "builtins.getattr"),
    "INST": (b"(" + text(COMMAND) + b"ios\nsystem\n.", "INST of os.system"),
    "OBJ": (b"(cevil\nEvil\n" + text(COMMAND) + b"o.", "OBJ"),
    "REDUCE of a foreign name": (b"cevil\nrun\n" + RUN + b"R.", "a call of evil.run"),
    "REDUCE of a known name's argument": (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
    "REDUCE of a list": (b"\x80\x02])R.", "a call of a value of type list"),
    "NEWOBJ with arguments": (b"\x80\x02cevil\nEvil\n" + RUN + b"\x81.", "evil.Evil with arguments"),
    "NEWOBJ of subprocess": (b"\x80\x02csubprocess\nPopen\n)\x81.", "subprocess.Popen"),
    "NEWOBJ_EX": (b"cevil\nEvil\n)}\x92.", "NEWOBJ_EX of evil.Evil"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "copyreg": (b"ccopyreg\n_reconstructor\n(cevil\nEvil\ncbuiltins\nobject\nNtR.", "copyreg._reconstructor"),
    "copyreg's table": (b"ccopyreg\nadd_extension\n(Va\nVb\nK\x01tR.", "copyreg.add_extension"),
    "BUILD on a name": (b"\x80\x02cevil\nEvil\n}b.", "a state for evil.Evil"),
    "BUILD on a list": (b"\x80\x02]}b.", "a state for a value of type list"),
    "PERSID": (b"Pstorage\n.", "PERSID"),
    "BINPERSID of no storage": (b"\x80\x02" + text("file:///etc/passwd") + b"Q.", "no storage"),
    "numpy's loader": (b"cnumpy\nload\n" + RUN + b"R.", "numpy.load"),
    "numpy's own runner": (b"cnumpy.testing._private.utils\nrunstring\n" + RUN + b"R.", "runstring"),
    "torch's own loader": (b"ctorch\nload\n" + RUN + b"R.", "torch.load"),
    "torch's jit": (b"ctorch.jit\n_script\n)R.", "torch.jit._script"),
    "codecs with another encoding": (b"c_codecs\nencode\n(" + text("a") + text("rot13") + b"tR.", "_codecs.encode"),
    "a nested pickle": (b"c_pickle\nloads\n(C\x02N.tR.", "_pickle.loads"),
    "a set": (b"\x8f.", "EMPTY_SET"),
    "a tuple as key": (b"\x80\x02})K\x01s.", "as the key of a dict"),
    "an array of objects": (
        pickle.dumps(np.array([Call(exec, COMMAND)], dtype=object), protocol=2),
        "__builtin__.exec|no number",
    ),
    "an object's own call": (pickle.dumps(Call(os.system, "touch canary"), protocol=2), "system"),
    "empty": (b"", "no whole pickle"),
    "no STOP": (b"\x80\x02}", "no whole pickle"),
    "an unset memo": (b"\x80\x02h\x07.", "no whole pickle"),
    "an empty stack": (b"\x80\x02R.", "no whole pickle"),
    "leftovers": (b"\x80\x02NN.", "no whole pickle"),
    "a declared string of 2**60 bytes": (b"\x8d" + struct.pack("<Q", 1 << 60) + b".", "no whole pickle"),
    "a number of 2**31 bytes": (b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".", "no whole pickle"),
}


def zipped(content: bytes, *, name: str = "archive/data.pkl", **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", b"3\n")
        for member, data in members.items():
            archive.writestr(f"archive/{member.replace('__', '/')}", data)
    return buffer.getvalue()


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_reference(path, path.parent / "run")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    said = refused(tmp_path / "models.pt", zipped(content))
    assert any(part in said for part in reason.split("|")), said
    assert "nothing was run" in said


def test_the_corpus_is_dangerous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler runs the canary of at least one of them."""
    pickle.loads(HOSTILE["STACK_GLOBAL"][0])  # noqa: S301
    assert os.environ.pop(CANARY) == "dead"


@pytest.mark.parametrize("name", ["GLOBAL", "STACK_GLOBAL", "REDUCE of a foreign name", "INST"])
def test_a_hostile_legacy_file_is_refused(name: str, tmp_path: Path) -> None:
    said = refused(tmp_path / "models.pt", HOSTILE[name][0])
    assert HOSTILE[name][1] in said
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, protocol=2)
    assert HOSTILE[name][1] in refused(tmp_path / "models.pt", buffer.getvalue() + HOSTILE[name][0])


def persistent(*reference: object) -> bytes:
    """A pickle of a tensor of 4 numbers on a storage reference."""
    kind = b"ctorch\nFloatStorage\n"
    parts = b"".join(kind if part is float else pickletools_literal(part) for part in reference)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + parts + b"tQK\x00K\x04\x85K\x01\x85\x89NtR."


def pickletools_literal(value: object) -> bytes:
    content = pickle.dumps(value, protocol=2)[2:-1]
    return b"".join(
        content[start:stop] for start, stop in spans(content + b".") if content[start : start + 1] not in (b"q", b"r")
    )


def spans(content: bytes) -> Iterator[tuple[int, int]]:
    starts = [position for _, _, position in pickletools.genops(content) if position is not None]
    yield from pairwise(starts)


def test_tensors_that_repeat_a_number_or_outgrow_the_file_are_refused(tmp_path: Path) -> None:
    """Torch would make room for them: of a legacy file's storage it makes a larger one."""
    path = tmp_path / "models.pt"
    huge = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    for shape, stride in ((huge, b"K\x00"), (huge, b"K\x01"), (b"K\x04", b"K\x02")):
        tensor = persistent("storage", float, "0", "cpu", 4).replace(
            b"K\x04\x85K\x01\x85", shape + b"\x85" + stride + b"\x85"
        )
        assert "reaches beyond" in refused(path, zipped(tensor, data__0=bytes(16)))
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, protocol=2)
    storage = persistent("storage", float, "0", "cpu", 1 << 40, None)
    legacy = buffer.getvalue() + storage + pickle.dumps(["0"], protocol=2) + bytes(24)
    assert "bytes where its tensors need" in refused(path, legacy)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (("storage", float, "0", "cpu", 1 << 40), "other|a tensor of"),
        (("storage", float, "0", "cpu", 2), "reaches beyond"),
        (("storage", float, "0", "cpu", -4), "without key or size"),
        (("storage", float, "../../outside", "cpu", 4), "without key or size"),
        (("storage", float, 0, "cpu", 4), "without key or size"),
        (("storage", "torch.FloatStorage", "0", "cpu", 4), "unknown type"),
        (("module", float, "0", "cpu", 4), "no storage"),
        (("storage", float, "0", "cpu"), "no storage"),
        (("storage", float, "7", "cpu", 4), "no member"),
        (("storage", float, "0", "cpu", 5), "a tensor of 20 bytes in a zip member of 16"),
    ],
)
def test_weird_storages_are_refused(reference: tuple[object, ...], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "models.pt"
    path.write_bytes(zipped(persistent(*reference), data__0=np.arange(4, dtype=np.float32).tobytes()))
    with pytest.raises(UserError) as caught:
        whole(path)
    assert any(part in str(caught.value) for part in reason.split("|")), caught.value


def whole(path: Path) -> list[float]:
    """The numbers of a file that holds one tensor."""
    root = read_torch_file(path)
    assert isinstance(root, torch.Tensor)
    return root.tolist()


def test_a_sound_storage_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.pt"
    path.write_bytes(
        zipped(persistent("storage", float, "0", "cpu", 4), data__0=np.arange(4, dtype=np.float32).tobytes())
    )
    assert whole(path) == [0.0, 1.0, 2.0, 3.0]


def test_zip_tricks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.pt"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * (1 << 20))
    assert "larger than the file" in refused(path, bomb.getvalue())
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", os.urandom(64))
    assert "compressed" in refused(path, small.getvalue())
    (tmp_path / "outside.pkl").write_bytes(HOSTILE["GLOBAL"][0])
    assert "no file of torch.save" in refused(path, zipped(b"N.", name="../outside.pkl"))
    assert "no file of torch.save" in refused(path, zipped(b"N.", name="/etc/x/data.pkl"))
    assert "big-endian" in refused(path, zipped(b"N.", byteorder=b"big"))


def test_endless_structures_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models.pt"
    deep = b"\x80\x02" + b"(" * 100_000 + b"N" + b"t" * 100_000 + b"."
    assert "no checkpoint" in refused(path, zipped(deep))
    laughs = b"\x80\x02)" + b"2\x86" * 1000 + b"."  # each tuple holds the one before twice
    assert "DUP" in refused(path, zipped(laughs))
    shared = b"".join(b"h%ch%c\x86q%ca" % (n, n, n + 1) for n in range(99))
    assert "no checkpoint" in refused(path, zipped(b"\x80\x02])q\x00a" + shared + b"."))
    key = b"\x80\x02])q\x00a" + shared + b"}hcNs"  # its hash would visit 2**99 tuples
    assert "as the key of a dict" in refused(path, zipped(key + b"a."))
    pairs = b"ccollections\nOrderedDict\n(]hcNtR"
    assert "OrderedDict with arguments" in refused(path, zipped(b"\x80\x02])q\x00a" + shared + pairs + b"."))
    monkeypatch.setattr("uwm.reference.pickle_check.MAX_ENCODED_BYTES", 1 << 20)
    encoded = b"h\x00(h\x01h\x02tRa" * 100  # one text, encoded a hundred times
    content = b"\x80\x02c_codecs\nencode\nq\x00" + text("x" * (1 << 16)) + b"q\x01" + text("latin1") + b"q\x02]"
    assert "bytes of arrays" in refused(path, zipped(content + encoded + b"."))
    monkeypatch.setattr("uwm.reference.pickle_check.MAX_OPCODES", 100)
    assert "opcodes" in refused(path, zipped(b"\x80\x02]" + b"Na" * 100 + b"."))


def test_foreign_instances_are_data(tmp_path: Path) -> None:
    path = tmp_path / "models.pt"
    path.write_bytes(zipped(b"\x80\x02cevil\nEvil\n)\x81}(X\x05\x00\x00\x00scaleK\x07ub."))
    instance = read_torch_file(path)
    assert type(instance) is OrderedDict
    assert vars(instance) == {"scale": 7}


@pytest.mark.parametrize("legacy", [False, True])
def test_honest_files_are_read_as_torch_reads_them(tmp_path: Path, legacy: bool) -> None:
    content: dict[str, Any] = {
        "float": torch.randn(3, 4).t(),
        "shared": (shared := torch.arange(6))[1:4],
        "base": shared,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "number": np.float64(1.5),
        "plain": [1, -2, 3.5, "text", None, True, b"bytes", (1, 2), {"a": 1 << 80}],
    }
    path = tmp_path / "models.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_torch_file(path)
    assert isinstance(found, dict)
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name].detach(), value.detach())
        elif isinstance(value, np.ndarray):
            assert isinstance(found[name], NumpyValue)
            np.testing.assert_array_equal(found[name].array(), value)
        else:
            assert found[name] == value


@pytest.fixture(scope="module")
def honest() -> dict[bool, bytes]:
    """A small honest file in both formats."""
    made = {}
    for legacy in (False, True):
        buffer = io.BytesIO()
        content = {"model": {"a": torch.arange(8.0), "b": torch.ones(2, 3)}, "step": 3, "array": np.arange(4.0)}
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
        made[legacy] = buffer.getvalue()
    return made


def everything(path: Path) -> None:
    """Read a file and all of its tensors."""
    root = read_torch_file(path)
    for value in root["model"].values() if isinstance(root, dict) and isinstance(root.get("model"), dict) else ():
        if isinstance(value, torch.Tensor):
            value.sum()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_damaged(honest: dict[bool, bytes], tmp_path: Path, legacy: bool) -> None:
    path, content = tmp_path / "models.pt", honest[legacy]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as caught:
            everything(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_tampered_bytes_run_nothing(
    honest: dict[bool, bytes], tmp_path: Path, legacy: bool, data: st.DataObject
) -> None:
    content = bytearray(honest[legacy])
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = value
    path = tmp_path / "models.pt"
    path.write_bytes(bytes(content))
    with contextlib.suppress(UserError):
        everything(path)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([content for content, _ in HOSTILE.values()]), st.integers(0, 40))
def test_random_pickles_run_nothing(tmp_path: Path, noise: bytes, base: bytes, place: int) -> None:
    path = tmp_path / "models.pt"
    path.write_bytes(zipped(base[:place] + noise + base[place:]))
    with contextlib.suppress(UserError):
        read_torch_file(path)


def test_one_flipped_bit_in_a_tensor_is_found(honest: dict[bool, bytes], tmp_path: Path) -> None:
    content = bytearray(honest[False])
    content[content.index(np.arange(8.0, dtype=np.float32).tobytes()) + 5] ^= 1
    path = tmp_path / "models.pt"
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        everything(path)
