// The instruction set level that CPU kernels use, decided once from what the processor offers.
#pragma once

#include <cstdint>
#include <string>

namespace lgreco {

/// Ascending: a processor that offers a level offers those before it.
enum class CpuLevel : uint8_t {
  kBaseline,  ///< any x86-64 (SSE2)
  kAvx2,      ///< AVX2, F16C and BMI2
  kAvx512,    ///< AVX-512 F, BW, DQ, VL and VBMI
};

/// "sse2", "avx2" or "avx512".
const char* name_of(CpuLevel level);

/// Throws ValueError for another name.
CpuLevel cpu_level_from(const std::string& name);

/// The best level of this processor.
CpuLevel best_cpu_level();

/// The level in use; the best one unless set otherwise.
CpuLevel cpu_level();

/// Uses another level from now on, in all threads (the results are the same, tests prove it).
/// Throws ValueError where the processor does not offer it.
void set_cpu_level(CpuLevel level);

}  // namespace lgreco
