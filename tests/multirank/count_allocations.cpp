// Counts memory allocations while a program runs; loaded before all else (LD_PRELOAD) by
// test_steady_state.py.
//
// Direct allocations are those whose caller lies in one shared object's code. Storages are those
// made the way torch's CPU allocator makes tensor storage: posix_memalign to 64 bytes. Both are
// kept apart by thread: those named lgreco-*, and all others.
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

std::atomic<uintptr_t> code_begin{0}, code_end{0};
std::atomic<bool> counting{false};

struct Counts {
  std::atomic<long> direct{0}, storages{0};
};
Counts of_lanes, of_others;

Counts& counts_of_this_thread() {
  char name[16] = {};
  pthread_getname_np(pthread_self(), name, sizeof(name));
  return std::strncmp(name, "lgreco-", 7) == 0 ? of_lanes : of_others;
}

void count(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (counting && address >= code_begin && address < code_end) ++counts_of_this_thread().direct;
}

void* checked(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

void count_allocations_of(uintptr_t begin, uintptr_t end) {
  code_begin = begin;
  code_end = end;
  for (Counts* counts : {&of_lanes, &of_others}) counts->direct = counts->storages = 0;
  counting = begin != end;
}
long direct_in_lanes() { return of_lanes.direct; }
long direct_elsewhere() { return of_others.direct; }
long storages_in_lanes() { return of_lanes.storages; }
long storages_elsewhere() { return of_others.storages; }

void* malloc(size_t size) { return count(CALLER), __libc_malloc(size); }
void* calloc(size_t number, size_t size) { return count(CALLER), __libc_calloc(number, size); }
void* realloc(void* old, size_t size) { return count(CALLER), __libc_realloc(old, size); }
void* aligned_alloc(size_t unit, size_t size) { return count(CALLER), __libc_memalign(unit, size); }

int posix_memalign(void** memory, size_t unit, size_t size) {
  count(CALLER);
  if (counting && unit == 64) ++counts_of_this_thread().storages;
  *memory = __libc_memalign(unit, size);
  return *memory == nullptr ? ENOMEM : 0;
}

}  // extern "C"

void* operator new(size_t size) { return count(CALLER), checked(__libc_malloc(size)); }
void* operator new[](size_t size) { return count(CALLER), checked(__libc_malloc(size)); }
void* operator new(size_t size, std::align_val_t unit) {
  return count(CALLER), checked(__libc_memalign(static_cast<size_t>(unit), size));
}
