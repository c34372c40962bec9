// The instruction set level that CPU kernels use, decided once from what the processor offers.
#include "core/cpu_dispatch.h"

#include <atomic>

#include "core/error.h"

namespace lgreco {
namespace {

CpuLevel detect() {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (!avx2) return CpuLevel::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi");
  return avx512 ? CpuLevel::kAvx512 : CpuLevel::kAvx2;
}

std::atomic<CpuLevel>& level_in_use() {
  static std::atomic<CpuLevel> level{best_cpu_level()};
  return level;
}

}  // namespace

const char* name_of(CpuLevel level) {
  switch (level) {
    case CpuLevel::kBaseline: return "sse2";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
  }
  return "?";
}

CpuLevel cpu_level_from(const std::string& name) {
  for (const CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (name == name_of(level)) return level;
  }
  throw ValueError(concat("instruction set level must be sse2, avx2 or avx512, got '", name, "'"));
}

CpuLevel best_cpu_level() {
  static const CpuLevel best = detect();
  return best;
}

CpuLevel cpu_level() { return level_in_use().load(std::memory_order_relaxed); }

void set_cpu_level(CpuLevel level) {
  require(level <= best_cpu_level(), "instruction set level ", name_of(level),
          " is not offered by this processor; its best is ", name_of(best_cpu_level()));
  level_in_use().store(level, std::memory_order_relaxed);
}

}  // namespace lgreco
