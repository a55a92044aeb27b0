from __future__ import annotations

import numpy as np

from weightspace.retrieval import finds_its_class


def test_a_sample_is_not_its_own_neighbour_and_the_nearest_one_decides():
    angles = np.radians([0, 10, 90, 100, 40])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = finds_its_class(embeddings, np.array([0, 0, 1, 1, 1]))
    assert found.tolist() == [True, True, True, True, False]
