// Asynchronous copies of a thread, at their worst: they arrive at the wait that covers them and not
// before, and until then there is NaN where they go.
#pragma once

#include <cstddef>
#include <vector>

namespace fastgen::emulator {

class Copies {
 public:
  void issue(void* shared, const void* global, size_t bytes);
  void commit() { ++groups_; }
  void wait(int later_groups);
  bool pending() const { return !copies_.empty(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    int group;
  };
  std::vector<Copy> copies_;
  int groups_ = 0;  // committed so far
};

}  // namespace fastgen::emulator
