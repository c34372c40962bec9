// Binds masks: between a tensor of truth values and one bit an element.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "bindings/bindings.h"
#include "bindings/masks_from.h"
#include "core/error.h"
#include "engine/kept_matrix.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;

void check_bits(const at::Tensor& bits, int64_t numel) {
  require(bits.is_cpu() && bits.is_contiguous() && bits.scalar_type() == at::kByte &&
              bits.numel() == (numel + 7) / 8,
          "bits must be uint8 [", (numel + 7) / 8, "] on the CPU");
}

/// A mask as its bits, uint8 [ceil(numel / 8)], the lowest first, and how many are set.
std::pair<at::Tensor, int64_t> pack_mask(const at::Tensor& mask) {
  require(mask.scalar_type() == at::kBool || mask.scalar_type() == at::kByte,
          "a mask must be bool or uint8, got ", mask.scalar_type());
  const at::Tensor flat = mask.to(at::kBool).cpu().contiguous();
  const auto* kept = static_cast<const uint8_t*>(flat.const_data_ptr());  // 0 or 1 each
  const int64_t numel = flat.numel();
  at::Tensor bits = at::zeros({(numel + 7) / 8}, at::kByte);
  auto* out = bits.mutable_data_ptr<uint8_t>();
  int64_t count = 0;
  for (int64_t i = 0; i < numel; i += 8) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, kept + i, static_cast<size_t>(std::min<int64_t>(8, numel - i)));
    out[i / 8] = static_cast<uint8_t>(bytes * 0x0102040810204080ULL >> 56);  // one bit of each byte
    count += std::popcount(out[i / 8]);
  }
  return {bits, count};
}

/// The inverse of pack_mask: bool [numel].
at::Tensor unpack_mask(const at::Tensor& bits, int64_t numel) {
  check_bits(bits, numel);
  at::Tensor mask = at::empty({numel}, at::kBool);
  const auto* from = bits.const_data_ptr<uint8_t>();
  auto* kept = mask.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < numel; ++i) kept[i] = (from[i / 8] >> (i % 8) & 1) != 0;
  return mask;
}

/// (rows, columns) that a mask keeps of a matrix with `cols` columns, where it keeps just whole ones.
std::optional<std::pair<int64_t, int64_t>> kept_matrix(const at::Tensor& bits, int64_t numel,
                                                       int64_t cols) {
  check_bits(bits, numel);
  require(numel == 0 || (cols > 0 && numel % cols == 0), "cols must divide ", numel, ", got ", cols);
  const auto kept = engine::kept_matrix(engine::Mask(bits.const_data_ptr<uint8_t>(), numel), cols);
  if (!kept) return std::nullopt;
  return std::pair(static_cast<int64_t>(kept->rows.size()), static_cast<int64_t>(kept->cols.size()));
}

}  // namespace

engine::Masks masks_from(const PackedMasks& packed) {
  engine::Masks masks;
  for (const auto& mask : packed) {
    masks.emplace_back();
    if (!mask) continue;
    const auto& [numel, bits] = *mask;
    check_bits(bits, numel);
    masks.back() = std::make_shared<const engine::Mask>(bits.const_data_ptr<uint8_t>(), numel);
  }
  return masks;
}

void bind_masks(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("pack_mask", &pack_mask, py::arg("mask"), released);
  module.def("unpack_mask", &unpack_mask, py::arg("bits"), py::arg("numel"), released);
  module.def("kept_matrix", &kept_matrix, py::arg("bits"), py::arg("numel"), py::arg("cols"), released);
}

}  // namespace lgreco::bindings
