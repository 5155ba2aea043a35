// Arrays as arguments: seen as they are (never converted or copied) and refused with what was expected and what came.
#pragma once

#include <initializer_list>

#include "bindings.h"

namespace finback {

using InputArray = nb::ndarray<nb::ro>;
using InOutArray = nb::ndarray<>;

inline constexpr int64_t kAny = -1;

template <class T>
constexpr const char* type_name() {
    if (nb::dtype<T>() == nb::dtype<float>()) return "float32";
    if (nb::dtype<T>() == nb::dtype<uint8_t>()) return "uint8";
    if (nb::dtype<T>() == nb::dtype<int32_t>()) return "int32";
    return "int64";
}

template <class A>
std::string describe(const A& array) {
    const nb::dlpack::dtype type = array.dtype();
    std::ostringstream text;
    constexpr const char* kinds[] = {"int", "uint", "float"};
    text << (type.code < 3 ? kinds[type.code] : "type ") << int{type.bits} << " [";
    for (size_t i = 0; i < array.ndim(); ++i) text << (i ? ", " : "") << array.shape(i);
    text << ']';
    return text.str();
}

inline std::string describe(std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (const int64_t n : shape)
        text += (text.size() > 1 ? ", " : "") + (n == kAny ? std::string("n") : std::to_string(n));
    return text + ']';
}

template <class A>
bool is_contiguous(const A& array) {
    if (array.size() == 0) return true;
    int64_t step = 1;
    for (size_t i = array.ndim(); i-- > 0; step *= static_cast<int64_t>(array.shape(i)))
        if (array.shape(i) > 1 && array.stride(i) != step) return false;
    return true;
}

template <class A>
bool has_shape(const A& array, std::initializer_list<int64_t> shape) {
    if (array.ndim() != shape.size()) return false;
    size_t i = 0;
    for (const int64_t n : shape)
        if (static_cast<int64_t>(array.shape(i++)) != n && n != kAny) return false;
    return true;
}

// The array's elements, if it is a C-contiguous array of T in memory with this shape (kAny: any length on that axis).
template <class T, class A>
auto elements(const char* operation, const char* name, const A& array, std::initializer_list<int64_t> shape) {
    require(array.dtype() == nb::dtype<T>() && has_shape(array, shape), operation, name, " must be ", type_name<T>(),
            ' ', describe(shape), ", not ", describe(array));
    require(is_contiguous(array) && array.device_type() == nb::device::cpu::value, operation, name,
            " must be C-contiguous in the processor's memory");
    return static_cast<std::conditional_t<std::is_same_v<A, InputArray>, const T, T>*>(array.data());
}

// A new NumPy array and its elements, not initialised.
template <class T = float>
struct Output {
    T* data;
    nb::object array;

    explicit Output(const std::vector<int64_t>& shape) {
        size_t count = 1;
        std::vector<size_t> lengths;
        for (const int64_t n : shape) {
            lengths.push_back(static_cast<size_t>(n));
            count *= static_cast<size_t>(n);
        }
        data = new T[count == 0 ? 1 : count];
        const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
        array = nb::cast(nb::ndarray<nb::numpy, T>(data, lengths.size(), lengths.data(), owner));
    }
};

}  // namespace finback
