// A packed weight and a norm as Python holds them, and the checks of their shapes.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <limits>
#include <optional>
#include <utility>

#include "array_args.h"
#include "formats.h"
#include "norm_rope.h"

namespace finback {

inline constexpr int64_t kMostRows = int64_t{1} << 31;

inline int64_t signed_size(size_t size) { return static_cast<int64_t>(size); }
inline size_t size_of(const InputArray& array, size_t axis) { return static_cast<size_t>(array.shape(axis)); }

inline Format format_named(const char* operation, const std::string& name) {
    for (int f = 0; f < kFormats; ++f)
        if (name == kFormatInfo[f].name) return static_cast<Format>(f);
    require(false, operation, "unknown format '", name, "'");
    return Format::f32;
}

// Sizes as given by Python, checked: positive, bounded, whole blocks, no overflow in their product.
inline Weight checked_shape(const char* operation, const std::string& format, int64_t rows, int64_t cols,
                            int64_t experts) {
    Weight w;
    w.format = format_named(operation, format);
    const int64_t block = signed_size(info(w.format).block_cols);
    require(rows >= 1 && rows <= kMostRows, operation, "rows must be from 1 to 2^31, not ", rows);
    require(cols >= 1 && cols <= kMostRows, operation, "cols must be from 1 to 2^31, not ", cols);
    require(experts >= 1 && experts <= kMostRows, operation, "experts must be from 1 to 2^31, not ", experts);
    require(cols % block == 0, operation, "cols must be a multiple of ", block, " for ", format, ", not ", cols);
    w.rows = static_cast<size_t>(rows);
    w.cols = static_cast<size_t>(cols);
    w.experts = static_cast<size_t>(experts);
    size_t bytes = 0;
    const bool fits = !__builtin_mul_overflow(2 * row_pairs(w.rows), w.experts, &bytes) &&
                      !__builtin_mul_overflow(bytes, w.block_stride(), &bytes) &&
                      bytes <= static_cast<size_t>(std::numeric_limits<int64_t>::max());
    require(fits, operation, "a weight of ", experts, " x ", rows, " x ", cols, " is too large");
    return w;
}

inline size_t bytes_of(const Weight& w) { return packed_bytes(w.format, w.rows, w.cols, w.experts); }

// A packed weight and the Python array that holds its bytes.
struct Matrix {
    Weight weight;
    nb::object data;
    InputArray view;  // of data: held, so that the bytes stay where they are

    Matrix(const std::string& format, int64_t rows, int64_t cols, nb::object bytes, int64_t experts)
        : weight(checked_shape("Matrix", format, rows, cols, experts)), data(std::move(bytes)) {
        require(view.take(data.ptr()), "Matrix", "data must be an array of bytes");
        weight.data = elements<uint8_t>("Matrix", "data", view, {signed_size(nbytes())});
        require(reinterpret_cast<uintptr_t>(weight.data) % alignof(float) == 0, "Matrix",
                "data must start at a multiple of 4 bytes");
    }
    size_t nbytes() const { return bytes_of(weight); }
    std::string text() const {
        std::string shape = std::to_string(weight.rows) + " x " + std::to_string(weight.cols);
        if (weight.experts > 1) shape = std::to_string(weight.experts) + " x " + shape;
        return std::string("Matrix(") + info(weight.format).name + ", " + shape + ")";
    }
};

inline void require_matrix(const Weight& w, const char* operation, const char* name, size_t experts, size_t rows,
                           size_t cols) {
    require(
        w.experts == experts && w.rows == rows && w.cols == cols, operation, name,
        " must be [experts, rows, cols] = ", ShapeText{{signed_size(experts), signed_size(rows), signed_size(cols)}},
        ", not ", ShapeText{{signed_size(w.experts), signed_size(w.rows), signed_size(w.cols)}});
}

using OptionalArray = std::optional<InputArray>;

// (weight, eps) of an RMSNorm.
using NormArgument = std::pair<InputArray, float>;
using OptionalNorm = std::optional<NormArgument>;

inline Norm norm_of(const char* operation, const NormArgument& norm, int64_t cols) {
    return {elements<float>(operation, "norm", norm.first, {cols}), norm.second};
}
inline Norm norm_of(const char* operation, const OptionalNorm& norm, int64_t cols) {
    return norm ? norm_of(operation, *norm, cols) : Norm{};
}

}  // namespace finback
