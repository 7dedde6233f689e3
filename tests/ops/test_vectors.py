"""Vectors cut into arrays and joined again, also by the GPU's kernel, interpreted on CPU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.ops import pallas_split_gpu, vectors
from tests.ops.test_pallas_tpu import interpret_kernels

SHAPES = ((3, 5), (7,), (), (2, 3, 4), (40, 2), (1, 1))
PARTS = tuple((shape, math.prod(shape)) for shape in SHAPES)
ROWS = tuple((shape, -(-size // vectors.ROW) * vectors.ROW) for shape, size in (*PARTS, ((3, 700), 2100)))
VECTOR = np.arange(sum(map(math.prod, SHAPES)), dtype=np.float32)


@pytest.fixture
def interpreted(monkeypatch):
    """`cut` takes the GPU's form; its kernel is interpreted, in blocks that are smaller than some arrays."""
    monkeypatch.setattr(vectors.lax, "platform_dependent", lambda *args, cuda, **_: cuda(*args))
    monkeypatch.setattr(pallas_split_gpu, "BLOCK", 16)
    yield from interpret_kernels(monkeypatch)


def expected(vector):
    parts = np.split(vector, np.cumsum([np.prod(shape, dtype=int) for shape in SHAPES])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def test_a_kernel_copies_all_arrays(interpreted):
    got = jax.jit(lambda vector: vectors.cut(vector, PARTS, pallas_kernels=True))(VECTOR)
    jax.tree.map(np.testing.assert_array_equal, got, expected(VECTOR))


def test_arrays_joined_are_the_vector_in_any_number_of_chunks(monkeypatch):
    for chunk in (1, 2, 5, 6, 32):
        monkeypatch.setattr(vectors, "CHUNK", chunk)
        np.testing.assert_array_equal(vectors.joined(list(map(jnp.asarray, expected(VECTOR))), PARTS), VECTOR)


def test_parts_of_whole_rows_have_norms_and_are_scaled():
    arrays = [np.cos(np.arange(math.prod(shape)).reshape(shape) + 1, dtype=np.float32) for shape, _ in ROWS]
    vector = vectors.joined(list(map(jnp.asarray, arrays)), ROWS)
    lengths = jax.jit(lambda vector: vectors.norms(vector, ROWS))(vector)
    np.testing.assert_allclose(lengths, [np.sqrt(np.sum(np.float64(a) ** 2)) for a in arrays], rtol=1e-6)
    factors = np.arange(len(arrays), dtype=np.float32)
    scaled = vectors.cut(jax.jit(lambda vector: vectors.scaled(vector, factors, ROWS))(vector), ROWS)
    jax.tree.map(np.testing.assert_array_equal, scaled, [n * a for n, a in enumerate(arrays)])


def test_the_gradient_is_the_gradients_joined():
    def loss(vector):
        return sum(n * jnp.sum(jnp.square(a)) for n, a in enumerate(vectors.cut(vector, PARTS)))

    wanted = np.concatenate([2 * n * a.reshape(-1) for n, a in enumerate(expected(VECTOR))])
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(VECTOR), wanted)
