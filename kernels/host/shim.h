// As much of CUDA C++ as the kernels use, for a host compiler: a launch is a loop over threads that run to their end one
// after the other, in an order of the caller's choice.
//
// That is enough for kernels without barriers, shared memory and exchange between threads. It shows wrong bytes, accesses
// outside of the named memory, misaligned accesses and dependence on the order of threads. It shows nothing of the memory
// model, of speed, or of what the device compiler makes of the source.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Dim3 {
  uint32_t x, y, z;
};
// Set before each thread runs.
inline thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

enum class ThreadOrder : uint32_t { FORWARD, REVERSED, SHUFFLED };

// Runs `kernel(arguments)` once for each thread of `grid` blocks of `threads` threads.
template <typename Kernel, typename Arguments>
void launch(Kernel kernel, const Arguments& arguments, uint32_t grid, uint32_t threads, ThreadOrder order, uint64_t seed) {
  std::vector<uint32_t> places(size_t(grid) * threads);
  for (size_t i = 0; i < places.size(); i++) places[i] = uint32_t(i);
  if (order == ThreadOrder::REVERSED) std::reverse(places.begin(), places.end());
  if (order == ThreadOrder::SHUFFLED) std::shuffle(places.begin(), places.end(), std::mt19937_64(seed));
  blockDim = {threads, 1, 1};
  gridDim = {grid, 1, 1};
  for (uint32_t place : places) {
    blockIdx = {place / threads, 0, 0};
    threadIdx = {place % threads, 0, 0};
    kernel(arguments);
  }
}
