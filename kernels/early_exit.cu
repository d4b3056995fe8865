// Which tiles of a batch continue behind an early exit, and their tokens without gaps between them.
//
// Two launches in order on one stream. A tile is decided by its own numbers, and its place among those
// that continue is the number of tiles before it that continue: the order is kept, and no thread waits
// for another. The kernels use no shared memory and no barrier, so that the host twin can run them
// thread by thread.
#include <cstdint>

// Whether tile `i` leaves: the rule `ExitRule.leaves`. A number that is not finite never leaves.
static __device__ bool leaves(
    const float* probs, const float* scores, int32_t classes, int32_t i, float confidence,
    float known_up_to) {
    bool sure = false;
    for (int32_t c = 0; c < classes; c++) {
        const float p = probs[static_cast<int64_t>(i) * classes + c];
        if (p != p) return false;
        sure = sure || p >= confidence;
    }
    return sure && scores[i] <= known_up_to;
}

// Grid (ceil(count / blockDim.x)). `probs`: [count][classes]; `scores`, `positions`: [count].
// `positions` becomes the place among the tiles that continue, or -1 for a tile that leaves. A thread
// reads the numbers of all tiles before its own: some hundred reads from a cache, in a few microseconds.
extern "C" __global__ void exit_positions(
    const float* probs, const float* scores, int32_t count, int32_t classes, float confidence,
    float known_up_to, int32_t* positions) {
    const int32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int32_t before = 0;
    for (int32_t j = 0; j < i; j++)
        before += !leaves(probs, scores, classes, j, confidence, known_up_to);
    positions[i] = leaves(probs, scores, classes, i, confidence, known_up_to) ? -1 : before;
}

// Grid (any, count). `tokens`: [count][words] of 32 bits; copies the rows that continue to `out`.
extern "C" __global__ void exit_gather(
    const uint32_t* tokens, const int32_t* positions, int32_t words, uint32_t* out) {
    const int32_t position = positions[blockIdx.y];
    if (position < 0) return;
    tokens += static_cast<int64_t>(blockIdx.y) * words;
    out += static_cast<int64_t>(position) * words;
    const int32_t stride = gridDim.x * blockDim.x;
    for (int32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) out[i] = tokens[i];
}
