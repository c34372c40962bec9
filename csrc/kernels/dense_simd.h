// The dense kernels over sixteen lanes, for any level that offers them (AVX2, AVX-512).
#pragma once

#include <type_traits>

#include "kernels/dense_levels.h"
#include "kernels/elements.h"
#include "kernels/rest.h"

namespace lgreco::kernels {

/// `Lanes`: see lanes_avx512.h. The last elements of a run are left to the scalar level.
template <class Lanes>
class SimdDense {
 public:
  static Findings encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, uint8_t* wire) {
    const Findings findings = encode_part(wire_dtype, gradient, dtype, numel, feedback, wire);
    Lanes::fence();
    return findings;
  }

  static Findings reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, uint8_t* out) {
    Findings findings;
    alignas(64) float sums[kChunkNumel];
    for (int64_t begin = 0; begin < numel; begin += kChunkNumel) {
      const int64_t some = numel - begin < kChunkNumel ? numel - begin : kChunkNumel;
      sum_for(wire_dtype)(wires, count, factor, begin, some, sums);
      findings.nonfinite |= encode_part(wire_dtype, sums, DType::kFloat32, some,
                                        advanced(feedback, begin), at(out, begin, wire_dtype))
                                .nonfinite;
    }
    Lanes::fence();
    return findings;
  }

  static Findings decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype) {
    const int64_t whole = numel / kLanes * kLanes;
    bool nonfinite = decode_for(wire_dtype, dtype)(wire, whole, out);
    if (whole < numel) {
      nonfinite |= scalar::dense_decode(wire_dtype, at(wire, whole, wire_dtype), numel - whole,
                                        at(out, whole, dtype), dtype)
                       .nonfinite;
    }
    return {.nonfinite = nonfinite};
  }

 private:
  using Float = typename Lanes::Float;
  using Int = typename Lanes::Int;
  using Encode = Findings (*)(const void* input, int64_t numel, const Feedback& feedback, uint8_t* wire);
  using Sum = void (*)(const uint8_t* const* wires, int count, float factor, int64_t begin,
                       int64_t numel, float* sums);
  using Decode = bool (*)(const uint8_t* wire, int64_t numel, void* out);

  static constexpr int kLanes = 16;
  static constexpr int64_t kChunkNumel = 1024;

  template <typename Pointer>
  static Pointer at(Pointer data, int64_t i, DType dtype) {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const uint8_t, uint8_t>;
    return static_cast<Byte*>(data) + i * element_bytes(dtype);
  }

  static Feedback advanced(Feedback feedback, int64_t numel) {
    if (feedback.out == nullptr) return feedback;
    feedback.in = at(feedback.in, numel, feedback.dtype);
    feedback.out = at(feedback.out, numel, feedback.dtype);
    return feedback;
  }

  template <DType kWire, DType kInput, Rest kRest>
  static Findings encode_run(const void* input, int64_t numel, const Feedback& feedback, uint8_t* wire) {
    constexpr DType kResidual = kRest == Rest::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
    const Float scale = Lanes::set(feedback.scale), inverse_scale = Lanes::set(feedback.inverse_scale);
    Int seen = Lanes::zero(), flaws = Lanes::zero();
    for (int64_t i = 0; i < numel; i += kLanes) {
      Float value = Lanes::template load<kInput>(at(input, i, kInput));
      seen = Lanes::bit_or(seen, Lanes::bits(value));
      if constexpr (kRest != Rest::kNone) {
        const Float owed = Lanes::template load<kResidual>(at(feedback.in, i, kResidual));
        value = Lanes::add(value, Lanes::mul(owed, scale));
      }
      const Float sent = Lanes::template store<kWire>(at(wire, i, kWire), value);
      const Float flaw = Lanes::sub(sent, sent);  // 0 where finite, else NaN
      flaws = Lanes::bit_or(flaws, Lanes::bits(flaw));
      if constexpr (kRest == Rest::kNone) continue;
      const Float error = Lanes::where_number(flaw, Lanes::mul(Lanes::sub(value, sent), inverse_scale));
      void* const left = at(feedback.out, i, kResidual);
      if constexpr (kRest == Rest::kStreamedFloat32) {
        Lanes::stream(static_cast<float*>(left), error);
      } else if constexpr (kRest != Rest::kNone) {
        Lanes::template store<kResidual>(left, error);
      }
    }
    return {.nonfinite = Lanes::any(flaws), .nonzero = Lanes::any_magnitude(seen)};
  }

  static Findings encode_part(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                              const Feedback& feedback, uint8_t* wire) {
    const int64_t whole = numel / kLanes * kLanes;
    Findings findings = encode_for(wire_dtype, dtype, feedback)(gradient, whole, feedback, wire);
    if (whole < numel) {
      const Findings tail =
          scalar::dense_encode(wire_dtype, at(gradient, whole, dtype), dtype, numel - whole,
                               advanced(feedback, whole), at(wire, whole, wire_dtype));
      findings.nonfinite |= tail.nonfinite;
      findings.nonzero |= tail.nonzero;
    }
    return findings;
  }

  template <DType kWire>
  static void sum_chunk(const uint8_t* const* wires, int count, float factor, int64_t begin,
                        int64_t numel, float* sums) {
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes) {
      Float sum = Lanes::template load<kWire>(at(wires[0], begin + i, kWire));
      for (int k = 1; k < count; ++k) {
        sum = Lanes::add(sum, Lanes::template load<kWire>(at(wires[k], begin + i, kWire)));
      }
      Lanes::template store<DType::kFloat32>(sums + i, Lanes::mul(sum, Lanes::set(factor)));
    }
    for (; i < numel; ++i) {
      float sum = load_element(wires[0], kWire, begin + i);
      for (int k = 1; k < count; ++k) sum += load_element(wires[k], kWire, begin + i);
      sums[i] = sum * factor;
    }
  }

  template <DType kWire, DType kOut>
  static bool decode_run(const uint8_t* wire, int64_t numel, void* out) {
    Int flaws = Lanes::zero();
    for (int64_t i = 0; i < numel; i += kLanes) {
      const Float value = Lanes::template load<kWire>(at(wire, i, kWire));
      const Float stored = Lanes::template store<kOut>(at(out, i, kOut), value);
      flaws = Lanes::bit_or(flaws, Lanes::bits(Lanes::sub(stored, stored)));
    }
    return Lanes::any(flaws);
  }

  /// Calls `visit` with a type as a template argument.
  template <typename Visit>
  static auto with_dtype(DType dtype, const Visit& visit) {
    if (dtype == DType::kBFloat16) return visit.template operator()<DType::kBFloat16>();
    if (dtype == DType::kFloat16) return visit.template operator()<DType::kFloat16>();
    return visit.template operator()<DType::kFloat32>();
  }

  static Encode encode_for(DType wire_dtype, DType dtype, const Feedback& feedback) {
    return with_dtype(wire_dtype, [&]<DType kWire>() {
      return with_dtype(dtype, [&]<DType kInput>() -> Encode {
        switch (rest_of(feedback, Lanes::kStreamAlignment)) {
          case Rest::kNone: break;
          case Rest::kFloat32: return &encode_run<kWire, kInput, Rest::kFloat32>;
          case Rest::kStreamedFloat32: return &encode_run<kWire, kInput, Rest::kStreamedFloat32>;
          case Rest::kBFloat16: return &encode_run<kWire, kInput, Rest::kBFloat16>;
        }
        return &encode_run<kWire, kInput, Rest::kNone>;
      });
    });
  }

  static Sum sum_for(DType wire_dtype) {
    return with_dtype(wire_dtype, []<DType kWire>() -> Sum { return &sum_chunk<kWire>; });
  }

  static Decode decode_for(DType wire_dtype, DType dtype) {
    return with_dtype(wire_dtype, [&]<DType kWire>() {
      return with_dtype(dtype, []<DType kOut>() -> Decode { return &decode_run<kWire, kOut>; });
    });
  }
};

}  // namespace lgreco::kernels
