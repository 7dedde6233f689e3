"""JSON as typed dataclasses: what fits comes back, and what does not is a TypeError that names the field."""

import dataclasses
import json

import pytest

from basisnet_jax.host.records import read, read_object, typed


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float
    name: str


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner
    perhaps: Inner | None
    all: list[Inner]
    named: dict[str, Inner]


WHOLE = Outer(3, Inner(0.5, "a"), None, [Inner(1.0, "b")], {"c": Inner(0.0, "d")})


def test_what_was_written_is_read_again(tmp_path):
    for value in (WHOLE, dataclasses.replace(WHOLE, perhaps=Inner(0.1, "e"), all=[], named={})):
        (tmp_path / "x.json").write_text(json.dumps(dataclasses.asdict(value)))
        assert read(Outer, tmp_path / "x.json") == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": "3"}, "count is '3'"),
        ({"count": True}, "count is True"),
        ({"inner": [1]}, "Inner is not an object"),
        ({"inner": {"share": 0.5}}, "name"),
        ({"inner": {"share": 0.5, "name": "a", "more": 1}}, "more"),
        ({"perhaps": {"share": "x", "name": "a"}}, "share is 'x'"),
        ({"all": {"share": 0.5, "name": "a"}}, "all is "),
        ({"all": [{"share": 0.5, "name": 7}]}, "name is 7"),
        ({"named": [1]}, "named is "),
        ({"named": {"c": None}}, "Inner is not an object"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, words):
    content = dataclasses.asdict(WHOLE) | change
    with pytest.raises(TypeError, match=words):
        typed(Outer, content)
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"x.json does not hold Outer: .*{words}"):
        read(Outer, tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{", b"[" * 100_000])
def test_a_file_without_an_object_is_a_value_error(tmp_path, content):
    """Also where JSON is nested so deeply that Python's parser raises RecursionError."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_object(tmp_path / "x.json")
