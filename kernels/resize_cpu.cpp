// The one resize for the CPU tile reader: `edgelung.kernels._resize`, a module of one function.
//
// The weights are those of resize.h; the two passes add the same integers as `blend` there, eight at a
// time, so every pixel is Pillow's and the device's. Where this was not built, Pillow does the same in
// three to five times the time.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000  // one binary for Python 3.11 and later
#include <Python.h>

#include <cstring>
#include <memory>
#include <new>

#include "resize.h"

// One function for each instruction set, chosen as the module loads; of these two a CPU must have
// one, since without AVX2 Pillow is faster. Needs GCC 12 for that name. (No contraction into fused multiply-adds, see resize.h, is
// the build's business.)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))

namespace {

constexpr int32_t HALF = 1 << (PRECISION_BITS - 1);
constexpr int64_t LANES = 8;
constexpr int32_t ROWS = 2;  // at once: with red, green, blue and a spare byte they fill the lanes

typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));
typedef uint8_t Narrow __attribute__((vector_size(LANES)));
typedef uint32_t Words __attribute__((vector_size(LANES)));

// As a loop: GCC makes one instruction of it, and several of __builtin_convertvector.
inline void widen(Narrow bytes, Lanes* wide) {
    int32_t lanes[LANES];
    for (int l = 0; l < LANES; l++) lanes[l] = bytes[l];
    std::memcpy(wide, lanes, sizeof lanes);
}

// 0 to 255 of sums of weighted pixels: no weight is negative, and they add up to one.
inline void narrow(const Lanes& sum, uint8_t* out) {
    const Bytes lowest = {0, 4, 8, 12, 16, 20, 24, 28};
    const Bytes bytes = __builtin_shuffle((Bytes)(sum >> PRECISION_BITS), lowest);
    std::memcpy(out, &bytes, LANES);
}

// The window and weights of every output of one axis, with the memory they lie in.
struct Weights {
    Axis axis;
    std::unique_ptr<int32_t[]> memory;

    Weights(int32_t in_size, int32_t out_size) {
        const int32_t taps = most_taps(in_size, out_size);
        memory.reset(new int32_t[static_cast<int64_t>(out_size) * (2 + taps)]);
        axis = {memory.get(), memory.get() + out_size, memory.get() + 2 * out_size, in_size, taps};
        for (int32_t i = 0; i < out_size; i++) weigh(axis, out_size, i);
    }
};

// ROWS rows of pixels to `out_size` each, and a byte more; `wide` holds them as integers.
FOR_EACH_CPU void resize_rows(
    const Axis& axis, int32_t out_size, const uint8_t* const* rows, Lanes* wide, uint8_t* const* out) {
    const int32_t last = axis.in_size - 1;
    for (int32_t x = 0; x < last; x++) {  // four bytes at a time, the next pixel's first to spare
        uint32_t words[ROWS];
        for (int r = 0; r < ROWS; r++) std::memcpy(words + r, rows[r] + 3 * x, 4);
        const Words pixel = {words[0], words[1]};
        widen((Narrow)pixel, wide + x);
    }
    wide[last] = Lanes{};  // beyond the last pixel there is none
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++) wide[last][4 * r + c] = rows[r][3 * last + c];
    for (int32_t i = 0; i < out_size; i++) {
        Lanes sum = Lanes{} + HALF;
        const Lanes* pixel = wide + axis.starts[i];
        const int32_t* weight = axis.weights + i;
        for (int32_t k = 0; k < axis.counts[i]; k++) sum += pixel[k] * weight[k * out_size];
        uint8_t bytes[LANES];
        narrow(sum, bytes);
        for (int r = 0; r < ROWS; r++)  // the spare byte is where the next pixel goes
            std::memcpy(out[r] + 3 * i, bytes + 4 * r, 4);
    }
}

// Row `i` of the output, `length` bytes, from rows that begin `stride` bytes apart.
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

// uint8 [height][width][3] to [size][size][3]: the width first, then the height.
void resize(const uint8_t* pixels, int32_t height, int32_t width, int32_t size, uint8_t* out) {
    const int64_t length = static_cast<int64_t>(size) * CHANNELS;
    std::unique_ptr<uint8_t[]> middle;
    const uint8_t* rows = pixels;
    int64_t stride = length;
    if (width != size) {
        const Weights across(width, size);
        const std::unique_ptr<Lanes[]> wide(new Lanes[width]);
        stride = length + 1;  // the last pixel's spare byte
        middle.reset(new uint8_t[stride * height]);
        for (int32_t y = 0; y < height; y += ROWS) {
            const uint8_t* from[ROWS];
            uint8_t* to[ROWS];
            for (int32_t r = ROWS - 1; r >= 0; r--) {  // what is missing at the end repeats the last
                const int64_t row = y + r < height ? y + r : height - 1;
                from[r] = pixels + row * width * CHANNELS;
                to[r] = middle.get() + row * stride;
            }
            resize_rows(across.axis, size, from, wide.get(), to);
        }
        rows = middle.get();
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
    constexpr int MOST = 1 << 28;  // so that no product below overflows
    bool fits = height >= 1 && width >= 1 && size >= 1;
    fits = fits && height <= MOST && width <= MOST && size <= MOST;
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
