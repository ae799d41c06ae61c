"""The restricted unpickler: what it reads, and that nothing in a file runs."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pyposeext.errors import InputError
from pyposeext.io import pickles
from pyposeext.io.pickles import read_pickle, tensors_of

CONTENT = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "half": np.array([1.5], np.float16),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4)),
    "zero_d": np.array(7),
    "text": np.array(["a", "bcd"]),
    "number": np.float64(2.5),
    "nested": [(1, 2.0, None, True), {"a": {"b"}}, b"bytes", "\xe9", 2**80],
    "ordered": OrderedDict(b=1, a=2),
}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", [b"numpy.core", b"numpy._core"])
def test_arrays_and_plain_containers(tmp_path, protocol, name):
    data = pickle.dumps(CONTENT, protocol=protocol)
    if protocol < 4:
        # NumPy 1 and 2 name the same functions differently. Later protocols have a name's length before it.
        data = data.replace(b"numpy._core", name).replace(b"numpy.core", name)
    read = read_pickle(write(tmp_path / "a.pkl", data))
    assert list(read) == list(CONTENT)
    for key, expected in CONTENT.items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(read[key], expected, strict=True)
        else:
            assert read[key] == expected
    assert list(read["ordered"]) == ["b", "a"]


def test_pickles_of_python_2(tmp_path):
    # {'w': numpy.array([1.5, -2.5], '<f4'), u'name': 'caf\xe9'} as Python 2.7 and NumPy 1.16 write it, protocol 2.
    data = (
        b"\x80\x02}q\x00(U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
        b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c("
        b"K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08\x00\x00\xc0?\x00\x00 \xc0q\x0ft"
        b"q\x10bX\x04\x00\x00\x00nameq\x11U\x04caf\xe9q\x12u."
    )
    read = read_pickle(write(tmp_path / "two.pkl", data))
    assert read["name"] == "caf\xe9"
    np.testing.assert_array_equal(read["w"], np.array([1.5, -2.5], "f4"), strict=True)
    # The text protocol of Python 2, with a class that only it has the name of.
    assert read_pickle(write(tmp_path / "zero.pkl", b"(dp0\nS'a'\np1\n(lp2\nI1\naL2L\nas.")) == {"a": [1, 2]}
    with pytest.raises(InputError, match=r"it holds builtins\.eval,"):
        read_pickle(write(tmp_path / "eval.pkl", b"c__builtin__\neval\n(S'1'\ntR."))


class Reduced:
    """Pickles as a call of whatever it is made of."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


HARMFUL = {
    r"it holds (posix|nt)\.system,": lambda place: Reduced(os.system, (f"touch {place}",)),
    r"it holds builtins\.eval,": lambda place: Reduced(eval, (f"open({str(place)!r}, 'w')",)),
    r"it holds builtins\.exec,": lambda place: {"a": [Reduced(exec, (f"open({str(place)!r}, 'w')",))]},
    r"it holds io\.open,": lambda place: Reduced(open, (str(place), "w")),
    r"it holds builtins\.getattr,": lambda place: Reduced(getattr, (CONTENT, "clear")),
    r"it holds (subprocess|commands)\.Popen,": lambda place: Reduced(subprocess.Popen, (["touch", str(place)],)),
    r"it holds torch\.load,|it holds torch\.serialization\.load,": lambda place: Reduced(torch.load, (str(place),)),
    r"it holds numpy\.load,": lambda place: Reduced(np.load, (str(place),)),
    r"it holds tests\.io\.test_pickles\.Reduced,": lambda place: Reduced(Reduced, ()),
}


@pytest.mark.parametrize("sentence", HARMFUL)
def test_nothing_is_executed(tmp_path, sentence):
    place = tmp_path / "it_ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(HARMFUL[sentence](place), protocol=protocol)
        with pytest.raises(InputError, match=rf"a\.pkl cannot be read safely: {sentence}.*save its arrays alone"):
            read_pickle(write(tmp_path / "a.pkl", data))
        assert not place.exists()
    # The files are harmful: an ordinary unpickler runs them.
    if "system" in sentence:
        pickle.loads(data)
        assert place.exists()


def test_arrays_that_are_more_than_numbers(tmp_path):
    for array, what in (
        (np.array([{}, None], dtype=object), r"the dtype 'O8?'"),
        (np.zeros(2, dtype=[("a", "f4")]), "the dtype 'V4'"),
        (np.zeros(2, dtype="M8[s]"), "the dtype 'M8'"),
        (np.ma.array([1.0], mask=[True]), r"numpy\.ma"),
    ):
        with pytest.raises(InputError, match=rf"cannot be read safely: it holds .*{what}"):
            read_pickle(write(tmp_path / "a.pkl", array))


def array_pickle(dtype=b"f8", order="<", extra=(None, None, None), shape=(1,), data=b"\0" * 8):
    """A pickled array whose parts say what they like."""
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    state = (3, order, *extra, -1, -1, 0)
    body = b"cnumpy\ndtype\nC" + bytes([len(dtype)]) + dtype + b"\x85R" + pickle.dumps(state, 2)[2:-1] + b"b"
    parts = b"(K\x01" + pickle.dumps(shape, 2)[2:-1] + body + b"\x89" + pickle.dumps(data, 3)[2:-1] + b"tb."
    return head + parts


def test_forged_arrays(tmp_path):
    path = tmp_path / "a.pkl"
    assert read_pickle(write(path, array_pickle())).tolist() == [0]
    for sentence, data in {
        "the dtype 'O8'": array_pickle(b"O8"),
        "the dtype '2f8'": array_pickle(b"2f8"),
        "an array of records": array_pickle(extra=(None, ("a",), {"a": 1})),
        "an array of objects": array_pickle(data=[1]),
        "damaged or not a pickle": array_pickle(shape=(2**40,)),
        "damaged or not a pickle: cannot reshape": array_pickle(shape=(3,)),
        "damaged or not a pickle: .*negative|damaged": array_pickle(shape=(-5, -1)),
        "an array of a kind of its own": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
        "an array without a dtype": b"cnumpy.core.multiarray\nscalar\nK\x00C\x01b\x86R.",
        "a function or a class in place of data": b"cnumpy.core.multiarray\n_reconstruct\n.",
        "a class in place of data": b"cnumpy\nndarray\n.",
        "a changed function": b"cnumpy.core.multiarray\nscalar\n}b.",
        "text in an encoding of its own": b"c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.",
        "a reference to data outside": b"K\x01Q.",
    }.items():
        with pytest.raises(InputError, match=sentence):
            read_pickle(write(path, data))
    assert read_pickle(write(path, array_pickle())).tolist() == [0]


def test_nothing_of_the_reader_can_be_changed(tmp_path):
    known = dict(pickles._KNOWN)
    for name in (b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\nscalar", b"collections\nOrderedDict"):
        for state in (b"}X\x01\0\0\0aK\x01s", b"N}X\x01\0\0\0aK\x01s\x86"):
            with pytest.raises(InputError):
                read_pickle(write(tmp_path / "a.pkl", b"c" + name + b"\n" + state + b"b."))
    assert known == pickles._KNOWN
    assert not any(hasattr(value, "a") for value in known.values())
    assert not hasattr(builtins, "a")


def test_what_is_no_pickle(tmp_path):
    for data in (b"", b"\0" * 50, b"text", pickle.dumps(CONTENT)[:-20], b"\x80\x04\x8e" + b"\xff" * 8, b"(" * 100):
        with pytest.raises(InputError, match=r"a\.pkl is damaged or not a pickle"):
            read_pickle(write(tmp_path / "a.pkl", data))
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(InputError, match="damaged or not a pickle"):
        read_pickle(write(tmp_path / "a.pkl", deep))
    with pytest.raises(InputError, match=r"gone\.pkl does not exist"):
        read_pickle(tmp_path / "gone.pkl")


def test_containers_that_hold_themselves(tmp_path):
    loop: list = [np.ones(2)]
    loop.append(loop)
    read = read_pickle(write(tmp_path / "a.pkl", loop))
    assert read[1] is read
    assert read[0].tolist() == [1, 1]


def test_layouts_of_detectron(tmp_path):
    weight, bias = np.random.default_rng(0).normal(size=(4, 3)).astype("f4"), np.zeros(4, ">f8")
    for content in (
        {"model": {"w": weight, "b": bias}, "__author__": "somebody", "matching_heuristics": True},
        {"blobs": {"w": weight, "w_momentum": weight, "b": bias}, "cfg": "TEXT: 1"},
        OrderedDict(w=weight, b=bias),
    ):
        tensors = tensors_of(read_pickle(write(tmp_path / "a.pkl", content)), "checkpoint a.pkl")
        assert list(tensors) == ["w", "b"]
        assert torch.equal(tensors["w"], torch.from_numpy(weight))
        assert tensors["b"].dtype == torch.float64
        tensors["w"] += 1  # they are the reader's own
    for content, sentence in (
        ([weight], "checkpoint a must hold arrays by name, got list"),
        ({}, "checkpoint a must hold arrays by name, got dict"),
        ({"model": {"w": "text"}}, "must hold arrays of numbers, but w is str"),
        ({"model": {"w": np.array(["a"])}}, "must hold arrays of numbers, but w is an array of <U1"),
    ):
        with pytest.raises(InputError, match=sentence):
            tensors_of(content, "checkpoint a")


def test_real_files(test_data):
    files = sorted((test_data / "pose2d/mmpose_reader_samples").glob("*/cameras*.pkl"))
    if not files:
        pytest.skip("PYPOSEEXT_TEST_DATA holds no pickled cameras")
    for file in files:
        expected = pickle.loads(file.read_bytes())
        read = read_pickle(file)
        assert list(read) == list(expected)
        for name, camera in expected.items():
            assert list(read[name]) == list(camera)
            for key, value in camera.items():
                np.testing.assert_array_equal(read[name][key], value)
