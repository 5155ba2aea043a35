// Arrays as arguments and results, at the least cost per call.
//
// Arguments are seen through the buffer protocol, as they are: never converted or copied, and refused with what was
// expected and what came. Results are made by numpy.empty. Both cost a tenth of what DLPack costs, which counts when a
// small model's step is three hundred calls.
#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "bindings.h"

namespace finback {

inline constexpr int64_t kAny = -1;

// A view of an object's buffer, held until the argument goes.
class InputArray {
public:
    InputArray() = default;
    InputArray(const InputArray&) = delete;
    InputArray& operator=(const InputArray&) = delete;
    InputArray(InputArray&& other) noexcept { *this = std::move(other); }
    InputArray& operator=(InputArray&& other) noexcept {
        std::swap(buffer_, other.buffer_);
        return *this;
    }
    ~InputArray() { PyBuffer_Release(&buffer_); }

    // False, with no Python error set, if the object has no buffer.
    bool take(PyObject* object) noexcept {
        if (PyObject_GetBuffer(object, &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) == 0) return true;
        PyErr_Clear();
        return false;
    }

    size_t ndim() const { return static_cast<size_t>(buffer_.ndim); }
    int64_t shape(size_t axis) const { return buffer_.shape[axis]; }
    int64_t size() const { return buffer_.itemsize == 0 ? 0 : buffer_.len / buffer_.itemsize; }
    void* data() const { return buffer_.buf; }
    bool read_only() const { return buffer_.readonly != 0; }
    // One letter as in the struct module, in the machine's byte order; '?' for anything else.
    char type() const {
        if (buffer_.format == nullptr || buffer_.format[0] == '\0' || buffer_.format[1] != '\0') return '?';
        return buffer_.format[0] == 'q' ? 'l' : buffer_.format[0];
    }
    bool contiguous() const {
        int64_t step = buffer_.itemsize;
        for (size_t i = ndim(); size() > 0 && i-- > 0; step *= shape(i))
            if (shape(i) > 1 && buffer_.strides[i] != step) return false;
        return true;
    }

private:
    Py_buffer buffer_{};
};

// The same, for an argument that the kernel writes to.
class InOutArray : public InputArray {};

template <class T>
constexpr char type_letter() {
    if constexpr (std::is_same_v<T, float>) return 'f';
    if constexpr (std::is_same_v<T, int32_t>) return 'i';
    if constexpr (std::is_same_v<T, int64_t>) return 'l';
    if constexpr (std::is_same_v<T, uint16_t>) return 'H';
    if constexpr (std::is_same_v<T, uint8_t>) return 'B';
}

// Texts of failed checks, written out only then.
struct TypeText {
    char letter;
};
struct ShapeText {
    std::initializer_list<int64_t> shape;
};
struct ArrayText {
    const InputArray& array;
};
inline ArrayText describe(const InputArray& array) { return {array}; }

inline std::ostream& operator<<(std::ostream& out, TypeText text) {
    constexpr std::pair<char, const char*> names[] = {
        {'f', "float32"}, {'e', "float16"}, {'d', "float64"}, {'b', "int8"},   {'B', "uint8"},
        {'h', "int16"},   {'H', "uint16"},  {'i', "int32"},   {'I', "uint32"}, {'l', "int64"},
    };
    for (const auto& [each, name] : names)
        if (each == text.letter) return out << name;
    return out << "another type";
}

inline std::ostream& operator<<(std::ostream& out, const ArrayText& text) {
    out << TypeText{text.array.type()} << " [";
    for (size_t i = 0; i < text.array.ndim(); ++i) out << (i ? ", " : "") << text.array.shape(i);
    return out << ']';
}
inline std::ostream& operator<<(std::ostream& out, const ShapeText& text) {
    const char* separator = "[";
    for (const int64_t n : text.shape) {
        out << separator;
        n == kAny ? out << 'n' : out << n;
        separator = ", ";
    }
    return out << (text.shape.size() == 0 ? "[]" : "]");
}

inline bool has_shape(const InputArray& array, std::initializer_list<int64_t> shape) {
    if (array.ndim() != shape.size()) return false;
    size_t i = 0;
    for (const int64_t n : shape)
        if (array.shape(i++) != n && n != kAny) return false;
    return true;
}

inline void require_rank(const char* operation, const char* name, const InputArray& array, size_t rank) {
    require(array.ndim() == rank, operation, name, " must have ", rank, " axes, not ", describe(array));
}

inline void require_contiguous(const char* operation, const char* name, const InputArray& array) {
    require(array.contiguous(), operation, name, " must be C-contiguous");
}

inline void require_writable(const char* operation, const char* name, const InOutArray& array) {
    require(!array.read_only(), operation, name, " must not be read-only");
}

// The array's elements, if it is a C-contiguous array of T with this shape (kAny: any length on that axis).
template <class T>
const T* elements(const char* operation, const char* name, const InputArray& array,
                  std::initializer_list<int64_t> shape) {
    require(array.type() == type_letter<T>() && has_shape(array, shape), operation, name, " must be ",
            TypeText{type_letter<T>()}, ' ', ShapeText{shape}, ", not ", describe(array));
    require_contiguous(operation, name, array);
    return static_cast<const T*>(array.data());
}

template <class T>
T* writable_elements(const char* operation, const char* name, const InOutArray& array,
                     std::initializer_list<int64_t> shape) {
    require_writable(operation, name, array);
    return const_cast<T*>(elements<T>(operation, name, array, shape));
}

// A new NumPy array and its elements, not initialised.
template <class T = float>
struct Output {
    nb::object array;
    T* data;

    explicit Output(std::initializer_list<int64_t> shape) : Output(shape.begin(), shape.size()) {}

    Output(const int64_t* shape, size_t axes) {
        // Looked up once and never released: the interpreter may be gone before static objects are.
        static const nb::object& empty = *new nb::object(nb::module_::import_("numpy").attr("empty"));
        static const nb::object& type = *new nb::object(
            nb::module_::import_("numpy").attr("dtype")(nb::str(std::string(1, type_letter<T>()).c_str())));
        const nb::object lengths = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(axes)));
        for (size_t i = 0; i < axes; ++i)
            PyTuple_SetItem(lengths.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[i]));
        array = empty(lengths, type);
        InputArray view;
        if (!view.take(array.ptr())) throw std::bad_alloc();
        data = static_cast<T*>(view.data());
    }
};

}  // namespace finback

namespace nanobind::detail {

template <class A>
struct buffer_caster {
    NB_TYPE_CASTER(A, const_name("numpy.ndarray"))

    bool from_python(handle source, uint32_t, cleanup_list*) noexcept { return value.take(source.ptr()); }
    static handle from_cpp(const A&, rv_policy, cleanup_list*) noexcept = delete;
};

template <>
struct type_caster<finback::InputArray> : buffer_caster<finback::InputArray> {};
template <>
struct type_caster<finback::InOutArray> : buffer_caster<finback::InOutArray> {};

}  // namespace nanobind::detail
