"""The vector layer equals the plain one, for any number of inputs."""

import numpy as np
import pytest

from thnerf.dense import BLOCK, dense, dense_plain


@pytest.mark.parametrize("outputs, inputs", [(32, 20), (4, 32), (16, 7), (8, 1)])
@pytest.mark.parametrize("rectify", [False, True])
def test_vectors_equal_plain_loops(outputs: int, inputs: int, rectify: bool) -> None:
    rng = np.random.default_rng(outputs)
    weight, bias, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (outputs,), (inputs, BLOCK)))
    a, b = np.full((outputs, BLOCK), np.nan, np.float32), np.full((outputs, BLOCK), np.nan, np.float32)
    dense_plain(weight, bias, x, a, rectify)
    dense(weight, bias, x, b, rectify)
    exact = weight @ x + bias[:, None]
    assert np.allclose(a, np.maximum(exact, 0) if rectify else exact, atol=1e-5)
    assert np.allclose(a, b, atol=1e-5) and (b.min() >= 0) == rectify
