// The factored layers of a bucket on CUDA: arrays, products and launches.
#include "engine/stream_factors.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <tuple>

#include "engine/to_device.h"

namespace lgreco::engine {
namespace {

template <typename T>
DeviceArray<T> array_of(const std::vector<T>& values, at::Device device) {
  return {to_device(values, device), static_cast<uint32_t>(values.size())};
}

kernels::LowRankFactor factor_of(const codecs::FactorCoding& coding, int rank, int64_t offset) {
  kernels::LowRankFactor factor;
  factor.offset = offset;
  factor.stride = coding.stride;
  factor.length = static_cast<int32_t>(coding.length);
  factor.rank = rank;
  return factor;
}

// Layers whose three places lie equally far apart are multiplied in one call.
struct Product {
  int64_t matrix = 0, p = 0, q = 0;  ///< places of the first layer
  int64_t matrix_distance = 0, p_distance = 0, q_distance = 0;
  int64_t count = 1;

  bool takes(int64_t next_matrix, int64_t next_p, int64_t next_q) {
    if (count == 1) {
      matrix_distance = next_matrix - matrix;
      p_distance = next_p - p;
      q_distance = next_q - q;
    }
    const bool fits = next_matrix == matrix + count * matrix_distance &&
                      next_p == p + count * p_distance && next_q == q + count * q_distance;
    if (fits) ++count;
    return fits;
  }
};

}  // namespace

StreamFactors::StreamFactors(const Plan& plan, const Layout& layout, at::Device device)
    : factor_numel_(layout.factor_numel()) {
  int64_t matrix_numel = 0;
  std::vector<kernels::LowRankFactor> first_averages;
  for (const FactoredLayer& place : layout.factored()) {
    const PlannedLayer& planned = plan.planned()[place.layer];
    works_.push_back({place, &planned, matrix_numel});
    matrix_numel += planned.lowrank->rows * planned.lowrank->cols;
    if (!planned.lowrank->alternate) {
      first_averages.push_back(factor_of(planned.lowrank->p, planned.lowrank->rank, place.p_offset));
    }
  }
  if (works_.empty()) return;
  const auto floats = at::TensorOptions().dtype(at::kFloat).device(device);
  memory_ = at::zeros({4, factor_numel_}, floats);
  workspace_ = at::zeros({matrix_numel}, floats);
  bits_ = at::zeros({static_cast<int64_t>(works_.size() + 31) / 32}, floats.dtype(at::kInt));
  first_averages_ = array_of(first_averages, device);
  turns_[0] = arrays_of(Turn::kEven, device);
  turns_[1] = arrays_of(Turn::kOdd, device);
}

StreamFactors::Matrices::Matrices(std::vector<kernels::LowRankRun> matrices, at::Device device)
    : tile_runs(array_of(kernels::number_tiles(matrices), device)) {
  runs = array_of(matrices, device);  // numbered
}

kernels::LowRankBatch StreamFactors::Matrices::batch() const {
  return {runs.data(), tile_runs.data(), runs.count, tile_runs.count};
}

StreamFactors::TurnArrays StreamFactors::arrays_of(Turn turn, at::Device device) {
  std::vector<kernels::WarmColumn> load, store;
  std::vector<kernels::LowRankFactor> alternating;
  std::vector<kernels::LowRankRun> in_bucket, in_runs;
  for (size_t i = 0; i < works_.size(); ++i) {
    const Work& work = works_[i];
    const codecs::LowRank& lowrank = *work.planned->lowrank;
    const bool gives_p = lowrank.alternate && turn == Turn::kOdd;  // as the last factor
    const bool from_p = lowrank.alternate && turn == Turn::kEven;  // the basis
    for (const bool is_p : {true, false}) {
      const int64_t warm = is_p ? work.planned->warm_p_offset : work.planned->warm_q_offset;
      if (warm < 0) continue;
      const codecs::FactorCoding& coding = is_p ? lowrank.p : lowrank.q;
      const int64_t offset = is_p ? work.place.p_offset : work.place.q_offset;
      for (int32_t j = 0; j < lowrank.rank; ++j) {
        kernels::WarmColumn column{warm + j * coding.stride,
                                   offset + j * coding.stride,
                                   static_cast<int32_t>(coding.length),
                                   j,
                                   static_cast<uint32_t>(work.place.layer),
                                   -1};
        if (is_p == from_p) load.push_back(column);
        if (is_p == gives_p) column.bit = static_cast<int32_t>(i);
        store.push_back(column);
      }
      if (lowrank.alternate && is_p == from_p) {
        alternating.push_back(factor_of(coding, lowrank.rank, offset));
      }
    }
    kernels::LowRankRun run;
    const bool in_run = work.place.run_offset >= 0;
    run.gradient_offset = in_run ? work.place.run_offset : work.place.bucket_offset;
    run.residual_offset = work.planned->residual_offset;
    run.matrix_offset = work.matrix_offset;
    run.bit = static_cast<int64_t>(i);
    run.rows = static_cast<int32_t>(lowrank.rows);
    run.cols = static_cast<int32_t>(lowrank.cols);
    run.rank = lowrank.rank;
    run.p_stride = run.own_p_stride = lowrank.p.stride;
    run.q_stride = run.own_q_stride = lowrank.q.stride;
    run.p_offset = kMean * factor_numel_ + work.place.p_offset;
    run.q_offset = kMean * factor_numel_ + work.place.q_offset;
    run.own_p_offset = (gives_p ? kError : kMean) * factor_numel_ + work.place.p_offset;
    run.own_q_offset = (gives_p ? kMean : kError) * factor_numel_ + work.place.q_offset;
    (in_run ? in_runs : in_bucket).push_back(run);
  }
  return {array_of(load, device),
          array_of(store, device),
          array_of(alternating, device),
          {Matrices(std::move(in_bucket), device), Matrices(std::move(in_runs), device)}};
}

kernels::BatchFeedback StreamFactors::error(Region which) const {
  kernels::BatchFeedback feedback;
  feedback.arenas[0] = feedback.arenas[1] = region(which);
  return feedback;
}

// P = M Q of the layers that exchange P now, or transposed: Q = M^T P of those that exchange Q.
void StreamFactors::multiply(bool transposed, Turn turn, bool alternating) {
  using Shape = std::tuple<int64_t, int64_t, int, int64_t, int64_t>;
  std::map<Shape, std::vector<Product>> products;
  for (const Work& work : works_) {
    const codecs::LowRank& lowrank = *work.planned->lowrank;
    if (lowrank.alternate != alternating) continue;
    if (alternating && transposed != (turn == Turn::kEven)) continue;
    auto& calls =
        products[{lowrank.rows, lowrank.cols, lowrank.rank, lowrank.p.stride, lowrank.q.stride}];
    const FactoredLayer& place = work.place;
    if (calls.empty() || !calls.back().takes(work.matrix_offset, place.p_offset, place.q_offset)) {
      calls.push_back({.matrix = work.matrix_offset, .p = place.p_offset, .q = place.q_offset});
    }
  }
  const at::Tensor mean = memory_[kMean], value = memory_[kValue];
  for (const auto& [shape, calls] : products) {
    const auto& [rows, cols, rank, p_stride, q_stride] = shape;
    for (const Product& call : calls) {
      const at::Tensor matrices =
          workspace_.as_strided({call.count, rows, cols}, {call.matrix_distance, cols, 1}, call.matrix);
      const auto p_of = [&](const at::Tensor& in) {
        return in.as_strided({call.count, rank, rows}, {call.p_distance, p_stride, 1},
                             in.storage_offset() + call.p);
      };
      const auto q_of = [&](const at::Tensor& in) {
        return in.as_strided({call.count, rank, cols}, {call.q_distance, q_stride, 1},
                             in.storage_offset() + call.q);
      };
      at::Tensor result = transposed ? q_of(value) : p_of(value);
      result.copy_(transposed ? at::bmm(p_of(mean), matrices)
                              : at::bmm(q_of(mean), matrices.transpose(1, 2)));
    }
  }
}

void StreamFactors::project(const StreamElements& elements, const StreamStep& step) {
  const TurnArrays& now = arrays(step.steps_begun);
  const Turn turn = step.steps_begun % 2 == 0 ? Turn::kEven : Turn::kOdd;
  bits_.zero_();
  memory_.narrow(0, kError, 2).zero_();
  for (const Matrices& matrices : now.matrices) {
    if (matrices.runs.count == 0) continue;
    const void* memory = &matrices == &now.matrices[0] ? elements.bucket : elements.runs;
    kernels::lowrank_batch_gather(matrices.batch(), memory, elements.dtype,
                                  step.residuals.sender_batch(step.scale), step.transaction,
                                  workspace_.mutable_data_ptr<float>(), bits(), step.stream);
  }
  kernels::warm_load(now.load.data(), now.load.count, step.residuals.warm_batch(), step.transaction,
                     step.seed, means(), step.stream);
  kernels::lowrank_batch_orthonormalise(now.alternating.data(), now.alternating.count, means(),
                                        step.stream);
  multiply(/*transposed=*/false, turn, /*alternating=*/false);
  multiply(turn == Turn::kEven, turn, /*alternating=*/true);
}

void StreamFactors::advance(const StreamStep& step) {
  kernels::lowrank_batch_orthonormalise(first_averages_.data(), first_averages_.count, means(),
                                        step.stream);
  multiply(/*transposed=*/true, Turn::kEvery, /*alternating=*/false);
}

void StreamFactors::finish(const StreamElements& elements, const StreamStep& step) {
  const TurnArrays& now = arrays(step.steps_begun);
  const auto ranks = static_cast<double>(step.residuals.world_size());
  memory_[kError].neg_().add_(memory_[kValue]).sub_(memory_[kOwnerError], ranks);  // what was given
  kernels::warm_store(now.store.data(), now.store.count, step.residuals.warm_batch(), step.transaction,
                      means(), bits(), step.stream);
  for (const Matrices& matrices : now.matrices) {
    if (matrices.runs.count == 0) continue;
    void* memory = &matrices == &now.matrices[0] ? elements.bucket : elements.runs;
    kernels::lowrank_batch_reconstruct(matrices.batch(), memory_.const_data_ptr<float>(), 1.0F,
                                       workspace_.const_data_ptr<float>(), bits(), memory,
                                       elements.dtype, step.residuals.sender_batch(step.scale),
                                       step.transaction, step.stream);
  }
}

int64_t StreamFactors::bytes() const {
  return works_.empty() ? 0 : static_cast<int64_t>(memory_.nbytes() + workspace_.nbytes());
}

}  // namespace lgreco::engine
