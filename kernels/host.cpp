// The host twin: all kernels compiled by g++. It runs their threads one by one.
//
// A few lines replace CUDA's built-in variables. Index arithmetic, guards and strides are those of
// the device code itself, not of a copy.
#include <cstdint>

struct Index {
    unsigned x, y, z;
};
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;
#define __global__
#define __device__

#include "device.cu"

// Call `kernel(arguments…)` for every thread of grid × block.
template <typename... Parameters, typename... Arguments>
static void launch(
    void (*kernel)(Parameters...), const unsigned* grid, const unsigned* block, Arguments... arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
                            kernel(arguments...);
}

extern "C" {
void host_resize_weights(const unsigned* grid, const unsigned* block, const Axis* axes, int32_t size) {
    launch(resize_weights, grid, block, axes, size);
}
void host_resize_rows(
    const unsigned* grid, const unsigned* block, const Tile* tiles, const Axis* axes, int32_t size) {
    launch(resize_rows, grid, block, tiles, axes, size);
}
void host_resize_columns(
    const unsigned* grid, const unsigned* block, const Tile* tiles, const Axis* axes, int32_t size,
    uint8_t* out) {
    launch(resize_columns, grid, block, tiles, axes, size, out);
}
void host_exit_positions(
    const unsigned* grid, const unsigned* block, const float* probs, const float* scores, int32_t count,
    int32_t classes, float confidence, float known_up_to, int32_t* positions) {
    launch(
        exit_positions, grid, block, probs, scores, count, classes, confidence, known_up_to, positions);
}
void host_exit_gather(
    const unsigned* grid, const unsigned* block, const uint32_t* tokens, const int32_t* positions,
    int32_t words, uint32_t* out) {
    launch(exit_gather, grid, block, tokens, positions, words, out);
}
int32_t host_max_taps(int32_t in_size, int32_t out_size) { return max_taps(in_size, out_size); }
}
