// What machine.cpp tells initcheck.cpp: where the shared memory of the block that begins lies.
#pragma once

#include <cstddef>

namespace emulator {

void forget_regions();
void add_region(void* begin, size_t size);

}  // namespace emulator
