// The instruction sets that this build contains, lowest first.
#pragma once

#if defined(FINBACK_X86)
#define FINBACK_FOR_EACH_ISA(X) X(scalar) X(avx2) X(avxvnni) X(avx512) X(avx512vnni) X(avx512amx)
#else
#define FINBACK_FOR_EACH_ISA(X) X(scalar)
#endif
