// Messages over MPI, from memory of the host: one lane makes all of a transport's calls to the library.
//
// So MPI_THREAD_SERIALIZED suffices, which every MPI offers; the exchange's threads only queue and wait.
// Where lgreco is the one that starts MPI, it also ends it, when the process ends.
#include "transports/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

namespace lgreco::transports {
namespace {

constexpr int kLargestTag = std::numeric_limits<int32_t>::max();  // the exchange's tags fill an int32

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(concat(call, " failed with code ", code, ": ", std::string(text, length)));
}

// Starts MPI unless the program has, and then ends it with the process.
class Library {
 public:
  Library() {
    int running = 0, finished = 0;
    MPI_Finalized(&finished);
    require(finished == 0, "MPI has been finalized in this process; attach before that");
    MPI_Initialized(&running);
    if (running != 0) {
      check(MPI_Query_thread(&level_), "MPI_Query_thread");
    } else {
      check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level_), "MPI_Init_thread");
      started_ = true;
    }
  }
  ~Library() {
    int finished = 0;
    MPI_Finalized(&finished);
    if (started_ && finished == 0) MPI_Finalize();
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  int level() const { return level_; }

 private:
  int level_ = MPI_THREAD_SINGLE;
  bool started_ = false;
};

const Library& library() {
  static const Library started;  // MPI starts once a process
  return started;
}

// One posted send or receive. What threads share is guarded by the lane's mutex.
struct Operation {
  Operation(uint8_t* data_, int bytes_, int peer_, int32_t tag_, bool sends_)
      : data(data_), bytes(bytes_), peer(peer_), tag(tag_), sends(sends_) {}

  uint8_t* data;
  int bytes;
  int peer;
  int32_t tag;
  bool sends;
  MPI_Request request = MPI_REQUEST_NULL;  // the lane's alone
  bool done = false;
  bool aborted = false;
  std::string error;
};
using OperationPtr = std::shared_ptr<Operation>;

class Lane {
 public:
  Lane() {
    check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    thread_ = std::thread([this] { run(); });
  }
  ~Lane() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    work_.notify_one();
    thread_.join();
    int finished = 0;
    MPI_Finalized(&finished);
    if (finished == 0) MPI_Comm_free(&comm_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void post(const OperationPtr& operation) {
    {
      const std::lock_guard lock(mutex_);
      posted_.push_back(operation);
    }
    work_.notify_one();
  }

  /// What went wrong, empty for nothing.
  std::string wait(const OperationPtr& operation, std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    if (!ended_.wait_for(lock, timeout, [&] { return operation->done || operation->aborted; })) {
      return concat("no answer over MPI within ", timeout.count(), " ms");
    }
    return operation->aborted ? "the wait was aborted" : operation->error;
  }

  /// Returns when MPI touches the operation's memory no more (a send that was given up excepted).
  void release(const OperationPtr& operation) {
    abort(operation);
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return operation->done; });
  }

  void abort(const OperationPtr& operation) {
    {
      const std::lock_guard lock(mutex_);
      if (operation->done) return;
      operation->aborted = true;
    }
    ended_.notify_all();
    work_.notify_one();
  }

 private:
  void run() {
    int idle_rounds = 0;
    while (take_posted(idle_rounds)) {
      idle_rounds = progress() ? 0 : idle_rounds + 1;
    }
    for (const OperationPtr& operation : active_) give_up(*operation);
  }

  // Starts what was posted. Sleeps while there is nothing to do; polls with growing pauses while there
  // is, as MPI has no way to wait for the network and the queue at once, and backward needs the cores.
  bool take_posted(int idle_rounds) {
    constexpr int kEagerRounds = 20;
    constexpr int kRoundsOfOnePause = 16;
    constexpr int kLongestPause = 16;
    constexpr auto kPause = std::chrono::microseconds(50);
    std::deque<OperationPtr> taken;
    {
      std::unique_lock lock(mutex_);
      const auto wanted = [this] { return closing_ || !posted_.empty(); };
      if (active_.empty()) {
        work_.wait(lock, wanted);
      } else if (idle_rounds > kEagerRounds) {
        const int pauses = 1 + (idle_rounds - kEagerRounds) / kRoundsOfOnePause;
        work_.wait_for(lock, std::min(pauses, kLongestPause) * kPause, wanted);
      }
      if (closing_) return false;
      taken.swap(posted_);
    }
    for (const OperationPtr& operation : taken) start(operation);
    return true;
  }

  void start(const OperationPtr& operation) {
    const Operation& o = *operation;
    const int code =
        o.sends ? MPI_Isend(o.data, o.bytes, MPI_BYTE, o.peer, o.tag, comm_, &operation->request)
                : MPI_Irecv(o.data, o.bytes, MPI_BYTE, o.peer, o.tag, comm_, &operation->request);
    if (code == MPI_SUCCESS) {
      active_.push_back(operation);
    } else {
      finish(*operation, code, o.sends ? "MPI_Isend" : "MPI_Irecv");
    }
  }

  /// Whether any operation ended. One call for all of them: each call polls the network.
  bool progress() {
    const size_t before = active_.size();
    give_up_aborted();
    if (active_.empty()) return before > 0;
    requests_.clear();
    for (const OperationPtr& operation : active_) requests_.push_back(operation->request);
    const auto count = static_cast<int>(requests_.size());
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int ended = 0;
    const int code = MPI_Testsome(count, requests_.data(), &ended, indices_.data(), statuses_.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) {
      for (const OperationPtr& operation : active_) finish(*operation, code, "MPI_Testsome");
      active_.clear();
      return true;
    }
    for (size_t i = 0; i < active_.size(); ++i) active_[i]->request = requests_[i];
    for (int i = 0; i < ended; ++i) {
      const auto at = static_cast<size_t>(i);
      const int status = code == MPI_SUCCESS ? MPI_SUCCESS : statuses_[at].MPI_ERROR;
      finish(*active_[static_cast<size_t>(indices_[at])], status, "MPI_Testsome");
    }
    // Which the lane alone writes.
    std::erase_if(active_, [](const OperationPtr& operation) { return operation->done; });
    return active_.size() < before;
  }

  void give_up_aborted() {
    aborted_.clear();
    {
      const std::lock_guard lock(mutex_);
      for (const OperationPtr& operation : active_) {
        if (operation->aborted) aborted_.push_back(operation);
      }
    }
    for (const OperationPtr& operation : aborted_) {
      give_up(*operation);
      std::erase(active_, operation);
    }
  }

  void finish(Operation& operation, int code, const char* call) {
    std::string error;
    try {
      check(code, call);
    } catch (const Error& failure) {
      error = failure.what();
    }
    {
      const std::lock_guard lock(mutex_);
      operation.error = std::move(error);
      operation.done = true;
    }
    ended_.notify_all();
  }

  // A receive is taken back, so that MPI writes no more to its memory. A send cannot be.
  void give_up(Operation& operation) {
    if (operation.sends) {
      MPI_Request_free(&operation.request);
    } else {
      MPI_Cancel(&operation.request);
      MPI_Wait(&operation.request, MPI_STATUS_IGNORE);
    }
    finish(operation, MPI_SUCCESS, "");
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<OperationPtr> active_, aborted_;  // the lane's alone, like the three below
  std::vector<MPI_Request> requests_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable ended_;
  std::deque<OperationPtr> posted_;
  bool closing_ = false;
  std::thread thread_;
};

class MpiMessage final : public Message {
 public:
  MpiMessage(std::shared_ptr<Lane> lane, int peer, uint8_t* data, int64_t bytes)
      : lane_(std::move(lane)), peer_(peer), data_(data), bytes_(static_cast<int>(bytes)) {
    ensure(bytes <= std::numeric_limits<int>::max(), "an MPI message holds at most 2 GiB, got ", bytes,
           " bytes");
  }
  ~MpiMessage() override {
    if (const OperationPtr operation = get()) lane_->release(operation);
  }

  void send(int32_t tag) override { post(tag, true); }
  void receive(int32_t tag) override { post(tag, false); }

  void wait(std::chrono::milliseconds timeout) override {
    const OperationPtr operation = get();
    if (!operation) return;
    const std::string error = lane_->wait(operation, timeout);
    if (!error.empty()) throw PeerError(error, peer_);
    set(nullptr);
  }

  void abort() override {
    if (const OperationPtr operation = get()) lane_->abort(operation);
  }

 private:
  void post(int32_t tag, bool sends) {
    auto operation = std::make_shared<Operation>(data_, bytes_, peer_, tag, sends);
    set(operation);
    lane_->post(operation);
  }
  void set(OperationPtr operation) {
    const std::lock_guard lock(mutex_);
    operation_ = std::move(operation);
  }
  OperationPtr get() {
    const std::lock_guard lock(mutex_);
    return operation_;
  }

  std::shared_ptr<Lane> lane_;
  int peer_;
  uint8_t* data_;
  int bytes_;
  std::mutex mutex_;
  OperationPtr operation_;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(int rank, int size) : rank_(rank), size_(size), lane_(std::make_shared<Lane>()) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Message> message(int peer, uint8_t* data, int64_t bytes) override {
    return std::make_unique<MpiMessage>(lane_, peer, data, bytes);
  }

 private:
  int rank_;
  int size_;
  std::shared_ptr<Lane> lane_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi(int rank, int size) {
  const int level = library().level();
  require(level >= MPI_THREAD_SERIALIZED, "transport mpi needs MPI_THREAD_SERIALIZED (",
          MPI_THREAD_SERIALIZED, ") at least, MPI was started with thread level ", level);
  int mpi_rank = 0, mpi_size = 0;
  check(MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank), "MPI_Comm_rank");
  check(MPI_Comm_size(MPI_COMM_WORLD, &mpi_size), "MPI_Comm_size");
  require(mpi_rank == rank && mpi_size == size, "transport mpi needs the ranks of MPI_COMM_WORLD: rank ",
          rank, " of ", size, " of DDP's group is rank ", mpi_rank, " of ", mpi_size,
          " there; start all ranks with mpirun, and let the group hold them all");
  int* tag_limit = nullptr;
  int known = 0;
  check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_limit, &known), "MPI_Comm_get_attr");
  require(known != 0 && *tag_limit >= kLargestTag, "transport mpi needs tags up to ", kLargestTag,
          ", this MPI has them up to ", known != 0 ? *tag_limit : 0);
  return std::make_unique<MpiTransport>(rank, size);
}

}  // namespace lgreco::transports
