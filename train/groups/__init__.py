"""Near-copies: an index of keypoints proposes pairs of tiles, geometry proves them."""
