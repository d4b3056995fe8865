// The arithmetic of the resize, compiled twice: by nvcc for the device, by g++ for the host.
//
// It repeats Pillow's BILINEAR (an antialiased triangle filter) for 8-bit pixels, operation by
// operation: weights in double, rounded to 22 fractional bits; a horizontal pass with a rounded
// uint8 result, then a vertical pass. Compile without fused multiply-adds (nvcc -fmad=false,
// g++ -ffp-contract=off): a weight that differs in its last bit can change a pixel.
//
// If a side already has the right size, the weights are 1 for the pixel itself and 0 for its
// neighbours, so the pass copies. Pillow skips that pass; the result is the same.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE static inline
#endif

constexpr int PRECISION_BITS = 32 - 8 - 2;  // of an int32: 8 for the pixel, 2 for headroom
constexpr int CHANNELS = 3;

// The weights of one axis for one input size. For each output: the first input pixel of its window,
// the number of pixels in it, and their weights. `starts` and `counts`: [out_size]; `weights`:
// [taps][out_size], so that neighbouring threads read neighbouring memory.
struct Axis {
    int32_t* starts;
    int32_t* counts;
    int32_t* weights;
    int32_t in_size;
    int32_t taps;
};

// One tile of a batch. `pixels`: [height][width][3]; `intermediate`: [height][out_size][3].
struct Tile {
    const uint8_t* pixels;
    uint8_t* intermediate;
    int32_t height;
    int32_t width;
    int32_t vertical;    // index of its Axis
    int32_t horizontal;  // index of its Axis
};

// Input pixels per output pixel. Pillow keeps the size as a float.
HOST_DEVICE double scale_of(int32_t in_size, int32_t out_size) {
    return static_cast<double>(static_cast<float>(in_size)) / out_size;
}

// The largest number of weights of any output of this axis.
HOST_DEVICE int32_t max_taps(int32_t in_size, int32_t out_size) {
    double scale = scale_of(in_size, out_size);
    if (scale < 1.0) scale = 1.0;
    int32_t whole = static_cast<int32_t>(scale);
    return (whole + (whole < scale ? 1 : 0)) * 2 + 1;
}

HOST_DEVICE double triangle(double x) {
    if (x < 0.0) x = -x;
    return x < 1.0 ? 1.0 - x : 0.0;
}

// Compute window and weights of output `i`.
HOST_DEVICE void compute_weights(const Axis& axis, int32_t out_size, int32_t i) {
    const double scale = scale_of(axis.in_size, out_size);
    const double support = scale < 1.0 ? 1.0 : scale;  // half the width of the triangle, in input pixels
    const double inverse = 1.0 / support;
    const double centre = (i + 0.5) * scale;
    int32_t first = static_cast<int32_t>(centre - support + 0.5);
    if (first < 0) first = 0;
    int32_t last = static_cast<int32_t>(centre + support + 0.5);
    if (last > axis.in_size) last = axis.in_size;
    const int32_t count = last - first;
    double sum = 0.0;
    for (int32_t k = 0; k < count; k++) sum += triangle((k + first - centre + 0.5) * inverse);
    for (int32_t k = 0; k < count; k++) {
        double weight = triangle((k + first - centre + 0.5) * inverse);
        if (sum != 0.0) weight /= sum;
        axis.weights[static_cast<int64_t>(k) * out_size + i] =
            static_cast<int32_t>(0.5 + weight * (1 << PRECISION_BITS));
    }
    axis.starts[i] = first;
    axis.counts[i] = count;
}

HOST_DEVICE uint8_t to_byte(int32_t sum) {
    const int32_t value = sum >> PRECISION_BITS;
    return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Compute one output pixel of either pass. `line` is the start of its row or column, `step` the
// distance between two of its pixels in bytes.
HOST_DEVICE void blend(
    const Axis& axis, int32_t out_size, int32_t i, const uint8_t* line, int64_t step, uint8_t* out) {
    const int32_t half = 1 << (PRECISION_BITS - 1);
    int32_t red = half, green = half, blue = half;
    const int32_t count = axis.counts[i];
    const uint8_t* pixel = line + axis.starts[i] * step;
    const int32_t* weight = axis.weights + i;
    for (int32_t k = 0; k < count; k++, pixel += step, weight += out_size) {
        const int32_t w = *weight;
        red += pixel[0] * w;
        green += pixel[1] * w;
        blue += pixel[2] * w;
    }
    out[0] = to_byte(red);
    out[1] = to_byte(green);
    out[2] = to_byte(blue);
}
