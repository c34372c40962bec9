// Binds the engine: convert, check, release the GIL, call.
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/choice_from.h"
#include "bindings/masks_from.h"
#include "core/error.h"
#include "engine/comm_hook.h"
#include "engine/engine.h"
#include "engine/hierarchical_exchange.h"
#include "engine/lane_exchange.h"
#include "engine/stream_exchange.h"
#include "engine/tensor_dtype.h"
#include "transports/c10d_p2p.h"
#include "transports/faulty.h"
#include "transports/mpi.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using engine::Engine;
using transports::Faults;

std::vector<codecs::Choice> choices_from(const std::vector<py::dict>& fields) {
  std::vector<codecs::Choice> choices;
  for (const py::dict& choice : fields) choices.push_back(choice_from(choice));
  return choices;
}

// An engine may die wherever the last reference is dropped, DDP's reducer included; its lanes need
// the GIL to finish what is theirs to finish, so it must not be held while they are joined.
void destroy(Engine* engine) {
  if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) {
    const py::gil_scoped_release release;
    delete engine;
  } else {
    delete engine;
  }
}

struct Settings {
  uint64_t seed = 0;
  uint64_t warmup_steps = 0;
  std::string residual = "fp32";
  int check_replicas_every = 0;
  int64_t timeout_ms = 0;
  int64_t chunk_bytes = 0;
  int64_t window_bytes = 0;
  std::string transport = "c10d";
};

/// Of a hierarchical exchange: the group of this node's ranks, and who is who.
struct Nodes {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  engine::Hierarchy hierarchy;
};

/// Layers that this rank does not carry are left to other rails.
std::vector<int32_t> rail_owners(const Nodes& nodes, size_t layers) {
  require(nodes.hierarchy.carriers.size() == layers, "one carrier per layer: got ",
          nodes.hierarchy.carriers.size(), " carriers and ", layers, " layers");
  std::vector<int32_t> owners;
  for (const int32_t carrier : nodes.hierarchy.carriers) {
    owners.push_back(carrier == nodes.group->getRank() ? engine::kDealt : engine::kElsewhere);
  }
  return owners;
}

std::unique_ptr<transports::Transport> over_gloo(c10d::ProcessGroup& group,
                                                 const std::shared_ptr<Faults>& faults) {
  auto transport = transports::make_c10d_p2p(group.getBackend(at::kCPU));
  return faults ? transports::make_faulty(std::move(transport), faults) : std::move(transport);
}

std::shared_ptr<Engine> make_engine(
    const Settings& settings, const std::optional<c10::intrusive_ptr<c10d::ProcessGroup>>& cpu_group,
    const c10::intrusive_ptr<c10d::ProcessGroup>& ddp_group, const std::vector<std::string>& names,
    const std::vector<at::Tensor>& parameters, const std::vector<py::dict>& choices,
    std::optional<at::Tensor> scale, const std::shared_ptr<Faults>& faults,
    const std::shared_ptr<Nodes>& nodes) {
  require(!parameters.empty(), "the model has no parameter that requires a gradient");
  std::vector<LayerSpec> layers;
  for (size_t i = 0; i < parameters.size(); ++i) {
    layers.push_back({names[i], parameters[i].sizes().vec(), parameters[i].numel(),
                      engine::dtype_of(parameters[i], concat("layer '", names[i], "'"))});
  }
  const std::vector<codecs::Choice> native = choices_from(choices);

  engine::EngineOptions options;
  c10d::ProcessGroup& exchanging = cpu_group ? **cpu_group : *ddp_group;
  options.rank = exchanging.getRank();
  options.world_size = exchanging.getSize();
  if (nodes) options.owners = rail_owners(*nodes, layers.size());
  options.warmup_steps = settings.warmup_steps;
  options.exchange.seed = settings.seed;
  if (settings.residual == "off") {
    options.exchange.residual_dtype.reset();
  } else {
    options.exchange.residual_dtype = dtype_from(settings.residual);
  }
  options.exchange.check_replicas_every = settings.check_replicas_every;
  options.exchange.timeout = std::chrono::milliseconds(settings.timeout_ms);
  if (settings.chunk_bytes > 0) options.exchange.chunk_bytes = settings.chunk_bytes;
  if (settings.window_bytes > 0) options.exchange.window_bytes = settings.window_bytes;

  const at::Device device = parameters[0].device();
  const auto make_exchange =
      [&](const engine::ExchangeOptions& exchange, std::vector<at::Tensor> tensors,
          std::shared_ptr<const engine::Plan> plan) -> std::unique_ptr<engine::Exchange> {
    if (device.is_cuda()) {
      require(nodes == nullptr, "a hierarchical exchange needs parameters on the CPU so far, got ",
              device, ": leave ranks_per_node out");
      require(settings.transport == "c10d", "transport mpi needs parameters on the CPU, got ", device);
      return engine::make_stream_exchange(ddp_group->getBackend(device.type()), exchange,
                                          std::move(tensors), std::move(plan));
    }
    if (nodes) {
      return std::make_unique<engine::HierarchicalExchange>(over_gloo(*nodes->group, faults),
                                                            over_gloo(exchanging, faults),
                                                            nodes->hierarchy, exchange, tensors, plan);
    }
    if (settings.transport == "c10d") {
      return std::make_unique<engine::LaneExchange>(over_gloo(exchanging, faults), exchange,
                                                    std::move(tensors), std::move(plan));
    }
    auto transport = transports::make_mpi(options.rank, options.world_size);
    if (faults) transport = transports::make_faulty(std::move(transport), faults);
    return std::make_unique<engine::LaneExchange>(std::move(transport), exchange, std::move(tensors),
                                                  std::move(plan));
  };
  const py::gil_scoped_release release;
  return {new Engine(options, layers, parameters, native, std::move(scale), make_exchange), destroy};
}

/// By watched layer: (offset, owner's residual from there on), or none.
std::vector<std::optional<std::pair<int64_t, at::Tensor>>> owed_of(const engine::Snapshot& snapshot) {
  std::vector<std::optional<std::pair<int64_t, at::Tensor>>> owed(snapshot.owed.size());
  for (size_t i = 0; i < owed.size(); ++i) {
    if (snapshot.owed[i].defined()) owed[i].emplace(snapshot.owed_offsets[i], snapshot.owed[i]);
  }
  return owed;
}

/// A tensor that may be undefined, as Python sees it.
template <auto kMember>
std::optional<at::Tensor> optional_of(const engine::LayerResidual& part) {
  const at::Tensor& tensor = part.*kMember;
  if (!tensor.defined()) return std::nullopt;
  return tensor;
}

// Bytes that one rank sends for a layer per step, mean over ranks: both rounds, all stages.
// `kept`: elements that a mask keeps, if there is one; their run costs what a layer of that size costs.
// A factored layer costs what a matrix of `kept_matrix` costs; without one it is coded whole.
double layer_wire_bytes(const std::vector<int64_t>& shape, const std::string& dtype,
                        const py::dict& choice, int world_size, std::optional<int64_t> kept,
                        std::optional<std::pair<int64_t, int64_t>> kept_matrix) {
  LayerSpec layer{"layer", shape, c10::multiply_integers(shape), dtype_from(dtype)};
  const codecs::Choice native = choice_from(choice);
  if (kept) {
    require(*kept >= 0 && *kept <= layer.numel, "kept must be 0..", layer.numel, ", got ", *kept);
    if (*kept == 0) return 0.0;
    if (native.codec != "lowrank") layer = {"layer", {*kept}, *kept, layer.dtype};
    if (native.codec == "lowrank" && kept_matrix) {
      layer = {"layer", {kept_matrix->first, kept_matrix->second}, *kept, layer.dtype};
    }
  }
  return engine::Plan({std::move(layer)}, {native}, world_size).wire_bytes(0);
}

void bind_faults(py::module_& module) {
  py::class_<Faults, std::shared_ptr<Faults>>(module, "Faults", "Faults made on purpose, for tests.")
      .def(py::init<>())
      .def_property(
          "gate_closed", [](const Faults& f) { return f.gate_closed.load(); },
          [](Faults& f, bool closed) { f.gate_closed = closed; })
      .def_property(
          "send_delay_ms", [](const Faults& f) { return f.send_delay_ms.load(); },
          [](Faults& f, int ms) { f.send_delay_ms = ms; })
      .def_property(
          "receive_delay_ms", [](const Faults& f) { return f.receive_delay_ms.load(); },
          [](Faults& f, int ms) { f.receive_delay_ms = ms; });
}

void bind_settings(py::module_& module) {
  py::class_<Settings>(module, "Settings", "What an engine is told once.")
      .def(py::init<>())
      .def_readwrite("seed", &Settings::seed)
      .def_readwrite("warmup_steps", &Settings::warmup_steps)
      .def_readwrite("residual", &Settings::residual)
      .def_readwrite("check_replicas_every", &Settings::check_replicas_every)
      .def_readwrite("timeout_ms", &Settings::timeout_ms)
      .def_readwrite("chunk_bytes", &Settings::chunk_bytes)
      .def_readwrite("window_bytes", &Settings::window_bytes)
      .def_readwrite("transport", &Settings::transport);
  py::class_<Nodes, std::shared_ptr<Nodes>>(
      module, "Nodes", "Of a hierarchical exchange: the group of this node's ranks, and who is who.")
      .def(py::init([](c10::intrusive_ptr<c10d::ProcessGroup> group, std::vector<int32_t> node_ranks,
                       std::vector<int32_t> rail_ranks, std::vector<int32_t> carriers) {
             return Nodes{std::move(group),
                          {std::move(node_ranks), std::move(rail_ranks), std::move(carriers)}};
           }),
           py::arg("group"), py::arg("node_ranks"), py::arg("rail_ranks"), py::arg("carriers"));
}

}  // namespace

void bind_engine(py::module_& module) {
  bind_faults(module);
  bind_settings(module);
  module.def("layer_wire_bytes", &layer_wire_bytes, py::arg("shape"), py::arg("dtype"),
             py::arg("choice"), py::arg("world_size"), py::arg("kept") = std::nullopt,
             py::arg("kept_matrix") = std::nullopt);
  py::class_<engine::LayerResidual>(module, "LayerResidual", "One layer's residuals on this rank.")
      .def(py::init([](std::string name, std::optional<at::Tensor> sender,
                       std::optional<at::Tensor> owner, int64_t owner_offset,
                       std::optional<at::Tensor> warm_p, std::optional<at::Tensor> warm_q) {
             const auto given = [](const std::optional<at::Tensor>& tensor) {
               return tensor ? *tensor : at::Tensor();
             };
             return engine::LayerResidual{std::move(name), given(sender), given(owner),
                                          owner_offset,    given(warm_p), given(warm_q)};
           }),
           py::arg("name"), py::arg("sender"), py::arg("owner"), py::arg("owner_offset"),
           py::arg("warm_p") = std::nullopt, py::arg("warm_q") = std::nullopt)
      .def_readonly("name", &engine::LayerResidual::name)
      .def_property_readonly("sender", optional_of<&engine::LayerResidual::sender>)
      .def_property_readonly("owner", optional_of<&engine::LayerResidual::owner>)
      .def_property_readonly("warm_p", optional_of<&engine::LayerResidual::warm_p>)
      .def_property_readonly("warm_q", optional_of<&engine::LayerResidual::warm_q>)
      .def_readonly("owner_offset", &engine::LayerResidual::owner_offset);

  using engine::Snapshot;
  py::class_<Snapshot, std::shared_ptr<Snapshot>>(
      module, "Snapshot", "What watched layers held before a step's exchange, and what it delivered.")
      .def_readonly("step", &Snapshot::step)
      .def_readonly("layers", &Snapshot::layers)
      .def_readonly("values", &Snapshot::values)
      .def_readonly("delivered", &Snapshot::delivered)
      .def_property_readonly("owed", &owed_of)
      .def_readonly("dropped", &Snapshot::dropped);

  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine, std::shared_ptr<Engine>>(module, "Engine", "The engine behind lgreco.State.")
      .def(py::init(&make_engine), py::arg("settings"), py::arg("cpu_group"), py::arg("ddp_group"),
           py::arg("names"), py::arg("parameters"), py::arg("choices"), py::arg("scale"),
           py::arg("faults"), py::arg("nodes") = nullptr)
      .def(
          "register_on",
          [](const std::shared_ptr<Engine>& engine, c10d::Reducer& reducer) {
            reducer.register_comm_hook(std::make_unique<engine::CommHook>(engine));
          },
          released)
      .def(
          "run",
          [](Engine& engine, c10d::GradBucket& bucket) {
            return std::make_shared<torch::jit::PythonFutureWrapper>(engine.run(bucket));
          },
          released)
      .def("watch", &Engine::watch, py::arg("step"), py::arg("layers"))
      .def("next_snapshot", &Engine::next_snapshot, released)
      .def("promise_plan", &Engine::promise_plan, py::arg("step"))
      .def(
          "set_plan",
          [](Engine& engine, uint64_t step, const std::optional<std::vector<py::dict>>& choices) {
            std::optional<std::vector<codecs::Choice>> native;
            if (choices) native = choices_from(*choices);
            const py::gil_scoped_release release;
            engine.set_plan(step, native);
          },
          py::arg("step"), py::arg("choices"))
      .def(
          "replace_plans",
          [](Engine& engine, const std::vector<py::dict>& choices) {
            engine.replace_plans(choices_from(choices));
          },
          py::arg("choices"))
      .def(
          "set_masks",
          [](Engine& engine, const PackedMasks& masks, const std::vector<py::dict>& choices) {
            const std::vector<codecs::Choice> native = choices_from(choices);
            const py::gil_scoped_release release;
            engine.set_masks(masks_from(masks), native);
          },
          py::arg("masks"), py::arg("choices"))
      .def("discard", &Engine::discard, released)
      .def("close", &Engine::close, released)
      .def("committed_steps", &Engine::committed_steps, released)
      .def("residuals", &Engine::residuals, released)
      .def("set_steps", &Engine::set_steps, released)
      .def("load", &Engine::load, released)
      .def("fingerprint", &Engine::fingerprint)
      .def("stats", [](Engine& engine) {
        const engine::ExchangeStats stats = [&] {
          const py::gil_scoped_release release;
          return engine.stats();
        }();
        py::dict out;
        out["steps"] = stats.steps;
        out["wire_bytes"] = stats.wire_bytes;
        out["node_bytes"] = stats.node_bytes;
        out["buffer_bytes"] = stats.buffer_bytes;
        out["codec_ms"] = stats.codec_ms;
        out["exposed_ms"] = stats.exposed_ms;
        out["busy_ms"] = stats.busy_ms;
        out["residual_bytes"] = stats.residual_bytes;
        return out;
      });
}

}  // namespace lgreco::bindings
