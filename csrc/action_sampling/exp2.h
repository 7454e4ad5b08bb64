// 2^t in double by the same additions and multiplications everywhere, each rounded once and none
// fused: the CPU's and CUDA's kernels have it, ops/action_sampling/reference.py and its Triton
// kernel.
//
// f = t - round(t) is in [-1/2, 1/2]; 2^f = 1 + f (c_1 + f (c_2 + ..)), minimax, relative error
// 4.7e-11. 2^0 is exactly 1. The low bits of t + kRound are round(t).
#pragma once

namespace logpi {

constexpr double kRound = 0x1.8p52;
constexpr double kLowestExponent = -1000;  // far below what any weight is rounded to
// Scalars, for device code sees no host array.
constexpr double kExp2C1 = 0x1.62e42ff0e191bp-1, kExp2C2 = 0x1.ebfbe0778729dp-3,
                 kExp2C3 = 0x1.c6b08ac06bb0fp-5, kExp2C4 = 0x1.3b29f39d49fd3p-7,
                 kExp2C5 = 0x1.5d8a85fedf482p-10, kExp2C6 = 0x1.445c8405ab1abp-13,
                 kExp2C7 = 0x1.fde5fdc78efb4p-17;

}  // namespace logpi
