// Which instance of an inner loop a call of the sixteen-lane quantise kernels needs. Part of
// quantize_simd.h.
#pragma once

namespace lgreco::kernels {

template <class Level>
template <DType kInput, bool kFetch>
typename SimdQuantizer<Level>::Gather SimdQuantizer<Level>::gather_for(const Feedback& feedback) {
  if (feedback.in == nullptr) return &gather_group<kInput, Rest::kNone, kFetch>;
  if (feedback.dtype == DType::kBFloat16) return &gather_group<kInput, Rest::kBFloat16, kFetch>;
  return &gather_group<kInput, Rest::kFloat32, kFetch>;
}

template <class Level>
typename SimdQuantizer<Level>::Gather SimdQuantizer<Level>::gather_for(DType input,
                                                                       const Feedback& feedback) {
  if (input == DType::kBFloat16) return gather_for<DType::kBFloat16, true>(feedback);
  if (input == DType::kFloat16) return gather_for<DType::kFloat16, true>(feedback);
  return gather_for<DType::kFloat32, true>(feedback);
}

template <class Level>
template <bool kStochastic, Rest kRest>
typename SimdQuantizer<Level>::Code SimdQuantizer<Level>::code_for(int bits) {
  static constexpr Code kCodes[] = {
      &code_group<1, kStochastic, kRest>, &code_group<2, kStochastic, kRest>,
      &code_group<3, kStochastic, kRest>, &code_group<4, kStochastic, kRest>,
      &code_group<5, kStochastic, kRest>, &code_group<6, kStochastic, kRest>,
      &code_group<7, kStochastic, kRest>, &code_group<8, kStochastic, kRest>};
  return kCodes[bits - 1];
}

template <class Level>
typename SimdQuantizer<Level>::Code SimdQuantizer<Level>::code_for(const QuantizeSpec& spec,
                                                                   const Feedback& feedback) {
  const auto pick = [&]<Rest kRest>() {
    return spec.stochastic ? code_for<true, kRest>(spec.bits) : code_for<false, kRest>(spec.bits);
  };
  switch (rest_of(feedback, Level::kStreamAlignment)) {
    case Rest::kNone: break;
    case Rest::kFloat32: return pick.template operator()<Rest::kFloat32>();
    case Rest::kStreamedFloat32: return pick.template operator()<Rest::kStreamedFloat32>();
    case Rest::kBFloat16: return pick.template operator()<Rest::kBFloat16>();
  }
  return pick.template operator()<Rest::kNone>();
}

template <class Level>
typename SimdQuantizer<Level>::Sum SimdQuantizer<Level>::sum_for(int bits) {
  static constexpr Sum kSums[] = {&sum_group<1>, &sum_group<2>, &sum_group<3>, &sum_group<4>,
                                  &sum_group<5>, &sum_group<6>, &sum_group<7>, &sum_group<8>};
  return kSums[bits - 1];
}

template <class Level>
template <DType kOut, bool kAdd>
typename SimdQuantizer<Level>::Decode SimdQuantizer<Level>::decode_for(int bits) {
  static constexpr Decode kDecodes[] = {&decode_group<1, kOut, kAdd>, &decode_group<2, kOut, kAdd>,
                                        &decode_group<3, kOut, kAdd>, &decode_group<4, kOut, kAdd>,
                                        &decode_group<5, kOut, kAdd>, &decode_group<6, kOut, kAdd>,
                                        &decode_group<7, kOut, kAdd>, &decode_group<8, kOut, kAdd>};
  return kDecodes[bits - 1];
}

template <class Level>
template <bool kAdd>
typename SimdQuantizer<Level>::Decode SimdQuantizer<Level>::decode_for(int bits, DType out) {
  if constexpr (!kAdd) {
    if (out == DType::kBFloat16) return decode_for<DType::kBFloat16, false>(bits);
    if (out == DType::kFloat16) return decode_for<DType::kFloat16, false>(bits);
  }
  return decode_for<DType::kFloat32, kAdd>(bits);
}

}  // namespace lgreco::kernels
