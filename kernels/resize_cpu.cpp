// The resize of the CPU tile reader: the Python module `edgelung.kernels._resize` with one function.
//
// The weights are those of resize.h. The two passes add the same integers as `blend` there, eight at a
// time, so every pixel equals that of Pillow and of the device. If this module was not built, Pillow
// does the same in three to five times the time.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000  // one binary for Python 3.11 and later
#include <Python.h>

#include <cstring>
#include <memory>
#include <new>

#include "resize.h"

// Compile one version for each instruction set; the right one is chosen when the module loads. The CPU
// must have AVX2: without it Pillow is faster. The name x86-64-v4 needs GCC 12. (The build turns off
// fused multiply-adds, see resize.h.)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))

namespace {

constexpr int32_t HALF = 1 << (PRECISION_BITS - 1);
constexpr int64_t LANES = 8;
constexpr int32_t ROWS = 2;  // at a time: red, green, blue and a spare byte of each fill the lanes

typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));
typedef uint8_t Narrow __attribute__((vector_size(LANES)));
typedef uint32_t Words __attribute__((vector_size(LANES)));

// A loop, because GCC turns it into one instruction, but __builtin_convertvector into several.
inline void widen(Narrow bytes, Lanes* wide) {
    int32_t lanes[LANES];
    for (int l = 0; l < LANES; l++) lanes[l] = bytes[l];
    std::memcpy(wide, lanes, sizeof lanes);
}

// Convert sums of weighted pixels to bytes. No clamping: no weight is negative and they add up to one.
inline void narrow(const Lanes& sum, uint8_t* out) {
    const Bytes lowest = {0, 4, 8, 12, 16, 20, 24, 28};
    const Bytes bytes = __builtin_shuffle((Bytes)(sum >> PRECISION_BITS), lowest);
    std::memcpy(out, &bytes, LANES);
}

// The Axis for one input size, with its memory.
struct Weights {
    Axis axis;
    std::unique_ptr<int32_t[]> memory;

    Weights(int32_t in_size, int32_t out_size) {
        const int32_t taps = max_taps(in_size, out_size);
        memory.reset(new int32_t[static_cast<int64_t>(out_size) * (2 + taps)]);
        axis = {memory.get(), memory.get() + out_size, memory.get() + 2 * out_size, in_size, taps};
        for (int32_t i = 0; i < out_size; i++) compute_weights(axis, out_size, i);
    }
};

// Resize ROWS rows to `out_size` pixels each. Writes one byte more per row. `wide` is scratch memory for
// the input pixels as integers.
FOR_EACH_CPU void resize_rows(
    const Axis& axis, int32_t out_size, const uint8_t* const* rows, Lanes* wide, uint8_t* const* out) {
    const int32_t last = axis.in_size - 1;
    for (int32_t x = 0; x < last; x++) {  // four bytes at a time: the fourth belongs to the next pixel
        uint32_t words[ROWS];
        for (int r = 0; r < ROWS; r++) std::memcpy(words + r, rows[r] + 3 * x, 4);
        const Words pixel = {words[0], words[1]};
        widen((Narrow)pixel, wide + x);
    }
    wide[last] = Lanes{};  // there is no byte after the last pixel
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++) wide[last][4 * r + c] = rows[r][3 * last + c];
    for (int32_t i = 0; i < out_size; i++) {
        Lanes sum = Lanes{} + HALF;
        const Lanes* pixel = wide + axis.starts[i];
        const int32_t* weight = axis.weights + i;
        for (int32_t k = 0; k < axis.counts[i]; k++) sum += pixel[k] * weight[k * out_size];
        uint8_t bytes[LANES];
        narrow(sum, bytes);
        for (int r = 0; r < ROWS; r++)  // the next pixel overwrites the spare byte
            std::memcpy(out[r] + 3 * i, bytes + 4 * r, 4);
    }
}

// Compute row `i` of the output, `length` bytes, from rows that are `stride` bytes apart.
FOR_EACH_CPU void blend_rows(
    const Axis& axis, int32_t out_size, int32_t i, const uint8_t* rows, int64_t stride, int64_t length,
    uint8_t* out) {
    const uint8_t* first = rows + axis.starts[i] * stride;
    const int32_t* weight = axis.weights + i;
    const int32_t count = axis.counts[i];
    int64_t x = 0;
    for (; x + LANES <= length; x += LANES) {
        Lanes sum = Lanes{} + HALF;
        for (int32_t k = 0; k < count; k++) {
            Narrow bytes;
            std::memcpy(&bytes, first + k * stride + x, sizeof bytes);
            Lanes wide;
            widen(bytes, &wide);
            sum += wide * weight[k * out_size];
        }
        narrow(sum, out + x);
    }
    for (; x < length; x++) {
        int32_t sum = HALF;
        for (int32_t k = 0; k < count; k++) sum += first[k * stride + x] * weight[k * out_size];
        out[x] = to_byte(sum);
    }
}

// Resize uint8 [height][width][3] to [size][size][3]: first the width, then the height.
void resize(const uint8_t* pixels, int32_t height, int32_t width, int32_t size, uint8_t* out) {
    const int64_t length = static_cast<int64_t>(size) * CHANNELS;
    std::unique_ptr<uint8_t[]> intermediate;
    const uint8_t* rows = pixels;
    int64_t stride = length;
    if (width != size) {
        const Weights across(width, size);
        const std::unique_ptr<Lanes[]> wide(new Lanes[width]);
        stride = length + 1;  // room for the spare byte of the last pixel
        intermediate.reset(new uint8_t[stride * height]);
        for (int32_t y = 0; y < height; y += ROWS) {
            const uint8_t* from[ROWS];
            uint8_t* to[ROWS];
            for (int32_t r = ROWS - 1; r >= 0; r--) {  // a missing row at the end repeats the last one
                const int64_t row = y + r < height ? y + r : height - 1;
                from[r] = pixels + row * width * CHANNELS;
                to[r] = intermediate.get() + row * stride;
            }
            resize_rows(across.axis, size, from, wide.get(), to);
        }
        rows = intermediate.get();
    }
    if (height == size) {
        for (int32_t y = 0; y < size; y++) std::memcpy(out + y * length, rows + y * stride, length);
        return;
    }
    const Weights down(height, size);
    for (int32_t y = 0; y < size; y++)
        blend_rows(down.axis, size, y, rows, stride, length, out + y * length);
}

PyObject* resize_rgb(PyObject*, PyObject* arguments) {
    Py_buffer in, out;
    int height, width, size;
    if (!PyArg_ParseTuple(arguments, "y*iiw*i", &in, &height, &width, &out, &size)) return nullptr;
    constexpr int MAX_SIDE = 1 << 28;  // so that no product below overflows
    bool fits = height >= 1 && width >= 1 && size >= 1;
    fits = fits && height <= MAX_SIDE && width <= MAX_SIDE && size <= MAX_SIDE;
    fits = fits && in.len == static_cast<Py_ssize_t>(height) * width * CHANNELS;
    fits = fits && out.len == static_cast<Py_ssize_t>(size) * size * CHANNELS;
    bool memory = true;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        try {
            resize(
                static_cast<const uint8_t*>(in.buf), height, width, size,
                static_cast<uint8_t*>(out.buf));
        } catch (const std::bad_alloc&) {
            memory = false;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "buffers do not fit %d x %d to %d", height, width, size);
    if (!memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"resize_rgb", resize_rgb, METH_VARARGS,
     "resize_rgb(pixels, height, width, out, size): C-contiguous uint8 (height, width, 3) into "
     "(size, size, 3). Raises ValueError where the sizes do not fit."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_resize", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__resize() {
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_ImportError, "this CPU has no AVX2");
        return nullptr;
    }
    return PyModule_Create(&module);
}
