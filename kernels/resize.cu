// Resize a batch of uint8 HWC tiles of different sizes to uint8 [N, size, size, 3].
//
// Three launches in order on one stream: the weights of every size in the batch, then the rows, then
// the columns. The kernels use no shared memory and no barrier, so that the host twin can run them
// thread by thread.
#include "resize.h"

// Grid (ceil(size / blockDim.x), axes).
extern "C" __global__ void resize_weights(const Axis* axes, int32_t size) {
    const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) compute_weights(axes[blockIdx.y], size, i);
}

// Grid (ceil(size / blockDim.x), rows, tiles). A thread strides over the rows, so any height fits.
extern "C" __global__ void resize_rows(const Tile* tiles, const Axis* axes, int32_t size) {
    const Tile tile = tiles[blockIdx.z];
    const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= size) return;
    const Axis axis = axes[tile.horizontal];
    const int32_t stride = gridDim.y * blockDim.y;
    for (int32_t y = blockIdx.y * blockDim.y + threadIdx.y; y < tile.height; y += stride) {
        const uint8_t* line = tile.pixels + static_cast<int64_t>(y) * tile.width * CHANNELS;
        uint8_t* out = tile.intermediate + (static_cast<int64_t>(y) * size + x) * CHANNELS;
        blend(axis, size, x, line, CHANNELS, out);
    }
}

// Grid (ceil(size / blockDim.x), ceil(size / blockDim.y), tiles).
extern "C" __global__ void resize_columns(
    const Tile* tiles, const Axis* axes, int32_t size, uint8_t* out) {
    const Tile tile = tiles[blockIdx.z];
    const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    const int32_t y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    const int64_t row = static_cast<int64_t>(size) * CHANNELS;
    out += blockIdx.z * row * size + y * row + x * CHANNELS;
    blend(axes[tile.vertical], size, y, tile.intermediate + x * CHANNELS, row, out);
}
