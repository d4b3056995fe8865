"""Near-duplicate tiles: candidates from an index of keypoints, proof from geometry."""
