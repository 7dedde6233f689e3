"""Mixup and cutmix against loops, the paper's own drawing of boxes, and one device against eight."""

import re

import jax
import numpy as np
import pytest

from basisnet_jax.host import mesh
from basisnet_jax.training import mixing

B = 16
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((B, 12, 10, 3)).astype(np.float32)
ONE_HOT = np.eye(B, dtype=np.float32)  # each image is a class of its own, so that the targets tell the shares
SOFT = RNG.dirichlet(np.ones(B), B).astype(np.float32)

mixup = jax.jit(mixing.mixup, static_argnames="alpha")
cutmix = jax.jit(mixing.cutmix, static_argnames="alpha")
BOTH = pytest.mark.parametrize("mix", [mixup, cutmix], ids=["mixup", "cutmix"])


def shares(mix, key):
    """The images, and each one's own share as its target has it."""
    images, targets = (np.asarray(x) for x in mix(IMAGES, ONE_HOT, key, 0.4))
    own = np.diag(targets)
    partners = ONE_HOT[np.arange(B) ^ 1]
    np.testing.assert_allclose(targets, own[:, None] * ONE_HOT + (1 - own)[:, None] * partners, atol=1e-7)
    return images, own


def test_mixup_is_a_loop_over_images():
    images, own = shares(mixup, jax.random.key(0))
    for b in range(B):
        np.testing.assert_allclose(images[b], own[b] * IMAGES[b] + (1 - own[b]) * IMAGES[b ^ 1], atol=1e-6)
    assert len(set(own)) == B, "each image has a share of its own"


@BOTH
def test_a_teachers_targets_are_mixed_as_the_labels(mix):
    _, both = mix(IMAGES, {"label": ONE_HOT, "teacher": SOFT}, jax.random.key(0), 0.4)
    _, alone = mix(IMAGES, SOFT, jax.random.key(0), 0.4)
    np.testing.assert_array_equal(both["teacher"], alone)


def test_cutmix_pastes_rectangles_and_counts_their_pixels():
    touched = 0
    for seed in range(5):
        images, own = shares(cutmix, jax.random.key(seed))
        for b in range(B):
            pasted = (images[b] == IMAGES[b ^ 1]).all(axis=-1)
            np.testing.assert_array_equal(images[b][~pasted], IMAGES[b][~pasted])
            np.testing.assert_array_equal(pasted, np.outer(pasted.any(axis=1), pasted.any(axis=0)))
            assert abs(120 * own[b] - (120 - pasted.sum())) < 1e-4, "the label's weight is the exact share of pixels"
            touched += pasted.any()
    assert touched > 0.8 * 5 * B


def test_cutmix_draws_boxes_as_the_paper_does():
    def papers_share(rng, height=12, width=10):
        side = np.sqrt(1 - rng.beta(1.0, 1.0))
        rows, columns, y, x = int(height * side), int(width * side), rng.integers(height), rng.integers(width)
        top, left = y - rows // 2, x - columns // 2
        inside = np.zeros((height, width), bool)
        inside[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)] = True
        return inside

    rng = np.random.default_rng(0)
    expected = np.mean([papers_share(rng) for _ in range(20_000)], axis=0)
    zeros = np.zeros((20_000, 12, 10, 1), np.float32)
    zeros[::2] = 1  # neighbours differ everywhere
    images, _ = cutmix(zeros, np.ones((20_000, 1), np.float32), jax.random.key(0), 1.0)
    got = np.mean(np.asarray(images) != zeros, axis=0)[..., 0]
    np.testing.assert_allclose(got, expected, atol=5 * np.sqrt(2 * 0.25 / 20_000))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixups_shares_are_betas(alpha):
    ones = np.ones((20_000, 1, 1, 1), np.float32)
    ones[1::2] = 0
    images, _ = mixup(ones, np.ones((20_000, 1), np.float32), jax.random.key(1), alpha)
    own = np.where(ones == 1, images, 1 - images).ravel()
    assert own.min() >= 0
    assert own.max() <= 1
    for power, expected in ((1, 0), (2, 1 / (2 * alpha + 1)), (4, 3 / (2 * alpha + 1) / (2 * alpha + 3))):
        moment = (2 * own - 1) ** power  # the moments of Beta(a, a), about 1/2
        assert abs(moment.mean() - expected) < 5 * moment.std() / np.sqrt(20_000), power


@BOTH
def test_targets_keep_their_sums(mix):
    _, targets = mix(IMAGES, SOFT, jax.random.key(2), 0.4)
    np.testing.assert_allclose(np.sum(targets, axis=1), 1.0, atol=1e-6)
    assert np.min(targets) >= 0


@BOTH
def test_a_key_settles_everything(mix):
    first, again, other = (jax.device_get(mix(IMAGES, SOFT, jax.random.key(seed), 0.4)) for seed in (3, 3, 4))
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first[0], other[0])


@BOTH
def test_dtypes_are_kept(mix):
    half = IMAGES.astype(jax.numpy.bfloat16)
    images, targets = jax.eval_shape(lambda x, t: mix(x, t, jax.random.key(0), 0.4), half, SOFT)
    assert (images.dtype, targets.dtype) == (jax.numpy.bfloat16, np.float32)


def test_mixup_refuses_integers():
    with pytest.raises(ValueError, match="not uint8; normalize"):
        mixup(IMAGES.astype(np.uint8), SOFT, jax.random.key(0), 0.4)


@BOTH
def test_eight_devices_do_what_one_does_and_send_nothing(mix):
    key, sharding = jax.random.key(5), mesh.batch_sharding(mesh.make_mesh(jax.devices()))
    sharded = jax.device_put((IMAGES, SOFT), sharding)
    for got, expected in zip(mix(*sharded, key, 0.4), mix(IMAGES, SOFT, key, 0.4), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    program = mix.lower(*sharded, key, alpha=0.4).compile().as_text()
    assert not re.search(r"\b(all-gather|all-to-all|all-reduce|collective-permute)(-start)?\(", program)
