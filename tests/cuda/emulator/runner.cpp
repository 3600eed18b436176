// Calls one entry point of the kernels that it is linked with: runner ENTRY ORDER SEED.
//
// Standard input has, all numbers uint64: the size of the arguments, the number of pointers in
// them and that of buffers; the arguments; for each pointer, where in the arguments it is, of which
// buffer, and how far into it; for each buffer, its size and content. Buffers go back by standard
// output, and behind them the number of barriers. Each is an allocation of exactly its size,
// aligned like those of cudaMalloc.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "order.h"
#include "runtime.h"

// The first report ends the run. Leaks are not looked for.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace fastgen::emulator {

constexpr size_t kAlignment = 256;

static void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) fail("the call is cut short");
}

struct Buffer {
  explicit Buffer(size_t size) : bytes(size) {
    if (posix_memalign(&memory, kAlignment, size) != 0) fail("no memory for %zu bytes", size);
    read(memory, size);
  }
  size_t bytes;
  void* memory = nullptr;
};

struct Pointer {
  uint64_t place, buffer, offset;
};

static Order order_of(std::string_view name) {
  if (name == "forward") return Order::kForward;
  if (name == "reverse") return Order::kReverse;
  if (name == "random") return Order::kRandom;
  fail("no order of threads is called %s", name.data());
}

static void call(const char* name, FILE* output) {
  using Entry = int (*)(const void* arguments);
  const Entry entry = reinterpret_cast<Entry>(dlsym(RTLD_DEFAULT, name));
  if (entry == nullptr) fail("no entry point is called %s", name);

  uint64_t sizes[3];
  read(sizes, sizeof(sizes));
  const Buffer arguments(sizes[0]);
  std::vector<Pointer> pointers(sizes[1]);
  read(pointers.data(), pointers.size() * sizeof(Pointer));
  std::vector<Buffer> buffers;
  for (uint64_t i = 0; i < sizes[2]; ++i) {
    uint64_t bytes;
    read(&bytes, sizeof(bytes));
    buffers.emplace_back(bytes);
  }
  for (const Pointer& pointer : pointers) {
    const void* value = static_cast<char*>(buffers[pointer.buffer].memory) + pointer.offset;
    std::memcpy(static_cast<char*>(arguments.memory) + pointer.place, &value, sizeof(value));
  }

  const int error = entry(arguments.memory);
  if (error != 0) fail("%s returned %d", name, error);
  if (any_launch_failed()) fail("%s returned 0 though a launch failed", name);
  for (const Buffer& buffer : buffers) std::fwrite(buffer.memory, 1, buffer.bytes, output);
  const uint64_t met = barriers();
  std::fwrite(&met, sizeof(met), 1, output);
  if (std::fclose(output) != 0) fail("cannot write the buffers");
}

}  // namespace fastgen::emulator

int main(int count, char** words) {
  if (count != 4) {
    std::fputs("usage: runner ENTRY ORDER SEED\n", stderr);
    return 2;
  }
  FILE* output = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);  // a kernel may print
  fastgen::emulator::set_order(fastgen::emulator::order_of(words[2]),
                               static_cast<unsigned>(std::strtoul(words[3], nullptr, 10)));
  fastgen::emulator::call(words[1], output);
}
