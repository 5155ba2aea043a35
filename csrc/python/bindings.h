// What the binding files share: the families that module.cpp registers, and typed views of NumPy arrays.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "check.h"

namespace finback {

namespace nb = nanobind;
using nb::literals::operator""_a;

// C-contiguous CPU arrays; a wrong dtype, rank or layout is refused by nanobind before the call.
template <class T, int Rank>
using Array = nb::ndarray<T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;
template <class T, int Rank>
using NumpyArray = nb::ndarray<nb::numpy, T, nb::ndim<Rank>, nb::c_contig>;

void bind_parts(nb::module_& m);            // runs of parts; before the families, which bind the parts themselves
void bind_weights(nb::module_& m);          // Matrix, pack, unpack, linear, mlp, moe
void bind_attention(nb::module_& m);        // norms, RoPE, KV rows, attention, sampling
void bind_attention_parts(nb::module_& m);  // attention from the residual stream and back
void bind_system(nb::module_& m);           // threads, instruction sets, bandwidth

}  // namespace finback
